"""What jobs that open a model have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from expunge.core.backbone import Backbone
from expunge.core.query import Query, queries
from expunge.jobs.job import UNSAID, Job
from expunge.jobs.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class ModelJob(Job):
    """A job that opens a model."""

    opens_model = True

    model: str
    """As `load` takes it."""
    model_sha256: str
    """Hash of its files, which counts in the job's key instead of the name."""
    dtype: str

    def backbone(self, at: Workspace) -> Backbone:
        """The model, the same as when the job was planned."""
        return at.backbone(self.model, self.dtype, self.model_sha256)


@dataclass(frozen=True, kw_only=True)
class AskingJob(ModelJob):
    """A job that asks the model for images of prompts."""

    prompts: Sequence[Sequence[str]]
    """Pairs of a prompt and its label."""
    count: int
    """Images a prompt."""
    seed: int
    """Of a prompt's first image."""
    guidance: float
    steps: int
    edits: Sequence[str]
    """Keys of the erasures whose edits are attached, in order."""
    strength: float = field(default=1.0, metadata=UNSAID)
    """What edits with weights are attached with."""
    seeds: Sequence[int] = field(default=(), metadata=UNSAID)
    """Of a published set of prompts: the seed of each."""
    true_cfg: float = field(default=1.0, metadata=UNSAID)
    """Scale of a distilled model's pair of predictions; 1 is none."""

    def queries(self) -> list[Query]:
        """What is asked for."""
        pairs = [(prompt, label) for prompt, label in self.prompts]
        return queries(pairs, self.count, self.seed, self.guidance, self.steps, self.seeds, self.true_cfg)
