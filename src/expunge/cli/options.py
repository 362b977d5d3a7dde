"""Options that commands share: which model, how images are sampled, what is attached, what is held back."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from expunge.cli import startup
from expunge.cli.parsing import Repeated
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.concept import Part
    from expunge.core.edit import Edit
    from expunge.core.guidance import Key
    from expunge.core.query import Query
    from expunge.stages.filters import Filter

Words = Repeated[tuple[str, ...]]
Paths = Repeated[tuple[Path, ...]]
Numbers = Repeated[tuple[float, ...]]
COUNT = 4
"""Images for each prompt, where nobody says how many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Which model, and how to run it."""

    model: str = "testbed"
    """`testbed`, a local diffusers folder, a single .safetensors file (LDM layout, or FLUX's transformer), or a hub id."""
    model_layout: str | None = None
    """How a single file is read: sd1, sd2 (v-prediction), sd2-base, sdxl, or a diffusers folder of its kind; for FLUX's
    transformer the folder that all else is from."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:0`, `mps` (GPU untested)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the weights while they run."""
    checkpointing: bool = False
    """Train in less memory: compute activations again on the way back."""

    def open(self) -> "Backbone":
        """Load the model."""
        startup.import_model_classes()
        from expunge import backbones

        how = {"device": self.device, "dtype": self.dtype, "revision": self.revision}
        backbone = backbones.load(self.model, **how, layout=self.model_layout)
        backbone.checkpointing = self.checkpointing
        return backbone

    def kind(self) -> str:
        """Under which kind of model its settings stand in ``presets.toml``; the model is not opened."""
        from expunge import backbones

        return backbones.kind_of(self.model, self.revision)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are sampled."""

    count: int | None = None
    """Images for each prompt; 4 if not given."""
    seed: int | None = None
    """First seed; the concept set's own if one is given, or 0."""
    guidance: float | None = None
    """Scale of classifier-free guidance; the model's own if not given. FLUX is told it, and makes no pair of predictions."""
    true_cfg: float | None = None
    """FLUX: scale that combines predictions for the prompt and without it, at twice the time; 1, no pair, if not given."""
    steps: int | None = None
    """Denoising steps; the model's own if not given."""
    batch: int | None = None
    """Images at a time; the model's own if not given."""

    @property
    def images(self) -> int:
        """Images for each prompt."""
        return COUNT if self.count is None else self.count

    def given(self, *names: str) -> str:
        """Which of these options were given, as words of the command line; empty if none was."""
        return " and ".join(f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None)

    def scale_and_steps(self, backbone: "Backbone") -> tuple[float, int]:
        """Guidance and steps: as given, or the model's own."""
        from expunge.settings import presets

        guidance, steps = presets.generation(backbone)
        guidance = guidance if self.guidance is None else self.guidance
        steps = steps if self.steps is None else self.steps
        if steps < 1 or self.images < 1:
            raise ExpungeError(f"steps {steps} and count {self.images}: expected both to be 1 or more")
        return guidance, steps

    def queries(
        self,
        backbone: "Backbone",
        prompts: Sequence[str] = (),
        concepts: Sequence[str] = (),
        part: "Part | None" = None,
    ) -> "list[Query]":
        """Queries for prompts, for concepts in the model's own template, and for a part of a concept set."""
        from expunge.core.concept import fill
        from expunge.core.query import queries
        from expunge.settings import presets

        guidance, steps = self.scale_and_steps(backbone)
        template = presets.prompt(backbone)
        wanted: list[tuple[str, str | None]] = [(p, None) for p in prompts]
        wanted += [(fill(template, c), c) for c in concepts]
        wanted += [] if part is None else list(part.prompts)
        first = part.seed if self.seed is None and part is not None else self.seed or 0
        return self.combined(queries(wanted, self.images, first, guidance, steps))

    def combined(self, asked: "Sequence[Query]") -> "list[Query]":
        """Queries with the scale of a distilled model's pair of predictions."""
        scale = 1.0 if self.true_cfg is None else self.true_cfg
        return [dataclasses.replace(query, true_cfg=scale) for query in asked]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edits:
    """Which edits are attached, and how strongly."""

    edit: Paths = ()
    """An edit.safetensors to attach; repeat in order."""
    strength: Numbers = ()
    """Strength of edits that have weights: 0 is nothing, 1 the edit as made; repeat for one of each edit."""

    def load(self) -> "list[Edit]":
        """The edits, in order."""
        return load_edits(self.edit)

    @property
    def strengths(self) -> float | Sequence[float]:
        """What they are attached with: as made if nothing is given, one number for all, or one for each."""
        return 1.0 if not self.strength else self.strength[0] if len(self.strength) == 1 else self.strength


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attachment:
    """Edits, and the base they go on."""

    edits: Edits = dataclasses.field(default_factory=Edits)
    any_base: bool = False
    """Attach edits that were made for another base."""

    def load(self) -> "list[Edit]":
        """The edits, in order."""
        return self.edits.load()

    def arguments(self) -> dict[str, Any]:
        """How they are attached, as a stage takes it."""
        return {"strength": self.edits.strengths, "any_base": self.any_base}


def load_edits(paths: Sequence[Path]) -> "list[Edit]":
    """Edits from their files, in order."""
    from expunge.store import load_edit

    return [load_edit(path) for path in paths]


def load_key(path: Path) -> "Key":
    """A private key from its file.

    Raises:
        ExpungeError: if the file holds another kind of edit.
    """
    from expunge.core.guidance import Key
    from expunge.store import load_edit

    key = load_edit(path)
    if not isinstance(key, Key):
        raise ExpungeError(f"'{path}' is a {key.kind} edit: expected the key.safetensors of an erasure that made one")
    return key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screening:
    """What is held back: prompts by their words or by a text classifier, images by what a judge sees in them."""

    hold_word: Words = ()
    """A word or phrase that a prompt must not name; repeat for several."""
    hold_prompt: Path | None = None
    """A folder of a text classifier (transformers) that reads every prompt."""
    hold_prompt_label: str = "NSFW"
    """Its label of prompts that are held back."""
    hold_prompt_threshold: float = 0.5
    """From which probability of that label on a prompt is held back, 0 to 1."""
    hold_concept: Words = ()
    """A concept that an image must not show; repeat for several."""
    hold_judge: str = "testbed"
    """Who looks: a judge, with settings as in testbed:network=b."""
    hold_threshold: float = 0.5
    """From which confidence on an image is held back, 0 to 1."""
    hold_action: Literal["black", "blur"] = "black"
    """What is shown instead of an image."""

    def filter(self) -> "Filter | None":
        """The filter, if there is anything to find."""
        if not (self.hold_word or self.hold_prompt or self.hold_concept):
            return None
        from expunge.stages.filters import Filter

        return Filter(
            words=self.hold_word,
            classifier="" if self.hold_prompt is None else str(self.hold_prompt),
            classifier_label=self.hold_prompt_label,
            classifier_threshold=self.hold_prompt_threshold,
            concepts=self.hold_concept,
            judge=self.hold_judge,
            threshold=self.hold_threshold,
            action=self.hold_action,
        )
