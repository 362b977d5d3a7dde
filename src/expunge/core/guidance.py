"""Guidance: edits that steer how a prompt is denoised, and the one place where predictions are combined."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.adapter import open_gates
from expunge.core.attention import AttentionHook, Evaluation
from expunge.core.conditioning import Conditioning
from expunge.core.edit import Edit, Provenance

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone


class Guidance(Edit):
    """A change to how a prompt is denoised: the weights stay as they are, but for those that it was learned with (`weights`).

    Subclasses are frozen dataclasses; their fields are JSON. They live beside their eraser, which names the class. ``state``
    is what a subclass remembers for one generation; what it knows of the prompt's words goes into ``of_words(state)``.
    """

    kind = "guidance"
    scales = False
    eraser: ClassVar[str]
    """Catalog name of the method it belongs to."""
    alone: ClassVar[bool] = False
    """Whether a second edit of the same class would undo this one, so that it is refused."""
    provenance: Provenance | None = None
    requires: tuple[str, ...] = ()

    @property
    def takes_null(self) -> bool:
        """Whether a text of its own takes the empty prompt's place: that of a second edit would undo it, so that is refused."""
        return False

    @override
    def fields(self) -> dict[str, Any]:
        return {"eraser": self.eraser, **asdict(self)}  # pyright: ignore[reportArgumentType]

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {}

    @classmethod
    def restore(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> "Guidance":
        """The guidance with these ``fields`` (without the eraser's name) and tensors, as they were stored.

        Raises:
            TypeError: if it has no such field.
        """
        return cls(**fields)

    def check(self, backbone: "Backbone") -> None:
        """Refuse a model that lacks what it changes, before it is attached.

        Raises:
            ExpungeError: naming what is lacking.
        """
        return

    def conditioning(
        self, backbone: "Backbone", cond: Conditioning, null: Conditioning, state: dict[str, Any]
    ) -> tuple[Conditioning, Conditioning]:
        """Change what the two halves of a guided pair are conditioned on; ``state`` lives for one generation."""
        return cond, null

    def look(
        self,
        backbone: "Backbone",
        x: Float[Tensor, "b *chw"],
        t: int | float,
        cond: Conditioning,
        state: dict[str, Any],
    ) -> None:
        """Ask, by `Backbone.predict`, what must be known before the next guided evaluation.

        Called before each of them, after `conditioning`, with the half that has the prompt. What is asked once for an image is
        kept in ``state``; whoever evaluates with a fresh one has another look.
        """
        return

    def attention(self, backbone: "Backbone", state: dict[str, Any]) -> AttentionHook | None:
        """What looks at the cross-attention of the next guided evaluation, or changes it; None for nothing.

        Asked once a denoising step, after `look`. Questions that `combine` asks do not heed it.
        """
        return None

    def combine(
        self, backbone: "Backbone", guided: Float[Tensor, "b *chw"], step: "GuidedStep"
    ) -> Float[Tensor, "b *chw"]:
        """Change the combined prediction; ``step`` has its ingredients."""
        return guided


class Key(Guidance):
    """A private edit that gives a model back what the edit it belongs to took; an eraser with `has_key` makes one.

    Its wrong versions are the controls of a recovery.
    """

    private = True

    @property
    @abstractmethod
    def concepts(self) -> Sequence[str]:
        """What it can bring back."""

    @abstractmethod
    def only_for(self, concept: str | None) -> "Key":
        """A key that brings back this concept whatever a text names; None undoes it.

        Raises:
            ExpungeError: for a concept that it does not hold.
        """

    @abstractmethod
    def random(self, seed: int) -> "Key":
        """A wrong key: noise as large as the true one."""

    @abstractmethod
    def rotated(self) -> "Key":
        """A wrong key: each concept has the next one's part.

        Raises:
            ExpungeError: if it holds one concept only.
        """


@final
@dataclass(frozen=True, kw_only=True)
class GuidedStep:
    """The ingredients of one guided prediction, handed to `Guidance.combine`."""

    x: Float[Tensor, "b *chw"]
    t: int | float
    """Timestep, as the scheduler counts."""
    index: int
    """Number of the denoising step, from 0."""
    cond: Conditioning
    null: Conditioning
    predicted_cond: Float[Tensor, "b *chw"]
    predicted_null: Float[Tensor, "b *chw"]
    scale: float
    state: dict[str, Any]
    """Lives for one generation (SLD's momentum, texts that were encoded)."""


class Guided(NamedTuple):
    """A guided prediction, and the two predictions it was combined from."""

    combined: Float[Tensor, "b c h w"]
    cond: Float[Tensor, "b c h w"]
    null: Float[Tensor, "b c h w"] | None
    """None without guidance, where the unconditional prediction is not needed."""


def guidances(edits: Iterable[Edit]) -> list[Guidance]:
    """Those of some edits that steer, in order."""
    return [edit for edit in edits if isinstance(edit, Guidance)]


def pairing(edits: Iterable[Edit]) -> list[Guidance]:
    """Edits that do nothing where no pair of predictions is made: no key, and none that looks at the attention."""
    return [edit for edit in guidances(edits) if not (edit.private or attends(edit))]


def of_words(state: dict[str, Any]) -> dict[str, Any]:
    """What a generation knows of the prompt's words: emptied when a call exchanges the prompt on the way."""
    return state.setdefault("words", {})


def conditioned(
    backbone: "Backbone", cond: Conditioning, null: Conditioning, state: dict[str, Any]
) -> tuple[Conditioning, Conditioning]:
    """What the two halves of a guided pair are conditioned on, as the attached edits leave it.

    Keys come last, whatever the order: what a key injects goes with the texts that other edits put in place.
    """
    for guidance in sorted(guidances(backbone.edits), key=lambda edit: edit.private):
        cond, null = guidance.conditioning(backbone, cond, null, state)
    return cond, null


def looked(
    backbone: "Backbone", x: Float[Tensor, "b *chw"], t: int | float, cond: Conditioning, state: dict[str, Any]
) -> None:
    """Have the attached edits look at what is to be denoised; nobody looks at the attention of what they ask."""
    for guidance in guidances(backbone.edits):
        if looks(guidance):
            with backbone.attention.heeding(()):
                guidance.look(backbone, x, t, cond, state)


def attending(backbone: "Backbone", state: dict[str, Any]) -> tuple[AttentionHook, ...]:
    """What the attached edits want to see, or change, of the cross-attention in the next guided evaluation."""
    hooks = (guidance.attention(backbone, state) for guidance in guidances(backbone.edits))
    return tuple(hook for hook in hooks if hook is not None)


def combined(backbone: "Backbone", step: GuidedStep) -> Float[Tensor, "b *chw"]:
    """Classifier-free guidance, as the attached edits leave it: the only place where predictions are combined.

    Nobody looks at the attention of what they ask: a recording is of the prompt that makes the image.
    """
    out = step.predicted_null + step.scale * (step.predicted_cond - step.predicted_null)
    for guidance in guidances(backbone.edits):
        if combines(guidance):
            with backbone.attention.heeding(()):
                out = guidance.combine(backbone, out, step)
    return out


def guided(
    backbone: "Backbone",
    x: Float[Tensor, "b c h w"],
    t: int | float,
    index: int,
    cond: Conditioning,
    null: Conditioning,
    scale: float,
    state: dict[str, Any],
    true_cfg: float = 1.0,
) -> Guided:
    """A guided prediction in our own loop; see `Backbone.guided`."""
    if not backbone.supports("distilled"):
        return _paired(backbone, x, t, index, cond, null, scale, state)
    before, backbone.told_scale = backbone.told_scale, scale
    try:
        return _paired(backbone, x, t, index, cond, null, true_cfg, state)
    finally:
        backbone.told_scale = before


def _paired(
    backbone: "Backbone",
    x: Float[Tensor, "b c h w"],
    t: int | float,
    index: int,
    cond: Conditioning,
    null: Conditioning,
    scale: float,
    state: dict[str, Any],
) -> Guided:
    """The prediction for a prompt, or, at a scale above 1, a pair of predictions that are combined."""
    rows = len(x)
    cond, null = conditioned(backbone, cond.expand(rows), null.expand(rows), state)
    looked(backbone, x, t, cond, state)
    gates, hooks = open_gates(backbone, cond, of_words(state)), attending(backbone, state)
    each = torch.full((rows,), t, device=x.device)
    if scale <= 1:
        alone = backbone.evaluated(x, cond, Evaluation(t=each, index=index, gates=gates, hooks=hooks))
        return Guided(alone, alone, None)
    half = slice(rows, 2 * rows)
    pair = Evaluation(t=each.repeat(2), index=index, prompted=half, gates=gates, hooks=hooks)
    both = backbone.evaluated(torch.cat([x, x]), null.expand(rows).join(cond.expand(rows)), pair)
    e_null, e_cond = both.chunk(2)
    step = GuidedStep(
        x=x,
        t=t,
        index=index,
        cond=cond,
        null=null,
        predicted_cond=e_cond,
        predicted_null=e_null,
        scale=scale,
        state=state,
    )
    return Guided(combined(backbone, step), e_cond, e_null)


def combines(edit: Edit) -> bool:
    """Whether an edit changes the guided prediction itself."""
    return _overrides(edit, "combine")


def attends(edit: Edit) -> bool:
    """Whether an edit may look at the cross-attention, or change it."""
    return _overrides(edit, "attention")


def looks(edit: Edit) -> bool:
    """Whether an edit may ask the denoiser something before a guided evaluation."""
    return _overrides(edit, "look")


def asks(edit: Edit) -> bool:
    """Whether an edit may put questions of its own to the denoiser."""
    return combines(edit) or looks(edit)


def _overrides(edit: Edit, method: str) -> bool:
    return isinstance(edit, Guidance) and getattr(type(edit), method) is not getattr(Guidance, method)
