"""Analyse: records and figures of an edit and its key, of the original model, or of an erasure that is run once more."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.core.analysis import Training
from expunge.core.backbone import Backbone
from expunge.core.edit import Provenance
from expunge.jobs.erase import EraseJob
from expunge.jobs.job import UNSAID, written_as
from expunge.jobs.modelled import ModelJob
from expunge.jobs.workspace import Workspace
from expunge.stages import analyse, wanted


@final
@dataclass(frozen=True, kw_only=True)
class AnalyseJob(ModelJob):
    """An analysis."""

    room: ClassVar[str] = "analyse"

    analysis: str
    """Catalog name."""
    version: int
    settings: Mapping[str, Any]
    judge: str
    """What its judge is told by."""
    targets: Sequence[str]
    retain: Sequence[str]
    prompts: Sequence[Sequence[str]]
    """Pairs of a prompt and its label, for words that the plan's set has prompts for."""
    first_seed: int
    guidance: float
    steps: int
    template: str
    """The prompt of all other words."""
    generates: int
    """Version of the images."""
    part: str
    edits: Sequence[str]
    """Keys of the erasures that are looked at."""
    key_job: str | None = field(metadata=written_as("key"))
    """Key of the erasure whose private key is looked at, too."""
    training: Mapping[str, Any] | None
    """The erasure that is run once more, as JSON without its model."""
    true_cfg: float = field(default=1.0, metadata=UNSAID)
    """Scale of a distilled model's pair of predictions; 1 is none."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        backbone = self.backbone(at)
        before = backbone.cost
        analysis = analyse.build(self.analysis, self.settings)
        edits = at.edits(self.edits)
        key = None if self.key_job is None else at.private_key(self.key_job, "erase")
        provenances, training = analyse.provenances(edits), None
        if self.training is not None:
            training, provenance = _again(EraseJob.from_json({**self.training, "model": self.model}), backbone, at)
            provenances = [provenance]
        prompts = {label: prompt for prompt, label in reversed(self.prompts)}
        words = (list(self.targets), list(self.retain), prompts, self.first_seed)
        sampling = analyse.Sampling(self.template, self.guidance, self.steps, self.true_cfg)
        study = analyse.planned(backbone, analysis, *words, edits, key, training, sampling)
        measured = analyse.run(backbone, self.analysis, analysis, study, provenances, out, self.part)
        return {
            "records": [m.record.as_json() for m in measured],
            "values": [[list(pair) for pair in m.values] for m in measured],
            "cost": asdict(backbone.cost - before),
        }

    @override
    def describe(self) -> str:
        return self.analysis


def _again(job: EraseJob, backbone: Backbone, at: Workspace) -> tuple[Training, Provenance]:
    """An erasure, ready to run once more, and what its edit's provenance would say."""
    given, eraser, targets = job.given(at), job.built(at), job.concepts()
    settings = (job.eraser, job.told(at), targets, list(job.retain), job.seed, job.salt)
    training = analyse.training(backbone, *settings, given)
    own = wanted.own(backbone, training.task, eraser.wants(targets, list(job.retain)), given)
    shown = {role: None if role in own else given.get(role) for role in training.task.images}
    provenance = Provenance(
        eraser=job.eraser,
        settings=dict(job.settings),
        targets=list(job.targets),
        anchors=[None for _ in job.targets],
        retain=list(job.retain),
        seed=job.seed,
        images={role: wanted.described(shots, shown[role]) for role, shots in training.task.images.items()},
        model=backbone.name,
        family=backbone.family,
    )
    return training, provenance
