"""Unified Concept Editing: a closed-form edit of the projections that read text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import phrases
from expunge.core.eraser import LATER, Eraser, Step, Task
from expunge.core.errors import ExpungeError, check_not_negative
from expunge.core.knowledge import Kind
from expunge.maths.closed_form import ridge_edit, ridge_edit_apart
from expunge.maths.text_pairs import Pairs, Phrase, Tokens, erased, kept, paired, paired_whole


@final
@dataclass(frozen=True, kw_only=True)
class UCE(Eraser):
    r"""Map a concept's key and value vectors onto its anchor's, in closed form, in seconds.

    .. math:: W = \Big(\sum_i s_e W_0 g_i c_i^T + \sum_j s_p W_0 c_j c_j^T + \lambda W_0\Big)
        \Big(\sum_i s_e c_i c_i^T + \sum_j s_p c_j c_j^T + \lambda I\Big)^{-1}

    Equation 7 of arXiv v2. :math:`W_0 g_i` is the goal by the technique `replace`. By `tensor`, a phrase's goals together lose
    their part along the phrase's own answers, :math:`W_0 g_i - \langle u, W_0 g \rangle u_i` with :math:`u = W_0 c / |W_0 c|`,
    as in the first script, which has it. Follows rohitgandikota/unified-concept-editing,
    ``trainscripts/uce_sd_erase.py`` (``tokens="last"``, the default) and ``train_erase.py`` (``tokens="tail"``).
    Reads text only: no images, no evaluation of the UNet.
    As in the current script, the empty anchor has no last word and is read at the start token. The first script's settings are
    ``tokens="tail", anchor=" ", preserve_scale="auto", preserve_empty=True``: the preset of Stable Diffusion, since the vectors
    after the last word's tell of it, too.
    Deviations: solves in float64 instead of inverting in float32; debiasing is a method of its own, `debias`.
    """

    paper: ClassVar[Paper] = Paper(
        "Unified Concept Editing in Diffusion Models",
        "Gandikota et al.",
        2024,
        "2308.14761",
        "https://github.com/rohitgandikota/unified-concept-editing",
    )
    knows: ClassVar[Mapping[str, Kind]] = {"anchor": "anchor", "templates": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("erase_scale", "preserve_scale", "preserve_empty", "tokens", "technique")
    lamb: float = 0.5
    """Pull towards the old weights, lambda in Eq. 7."""
    erase_scale: float = 1.0
    """Weight of each target, s_e."""
    preserve_scale: float | Literal["auto"] = 1.0
    """Weight of each retained concept, s_p; auto is the first script's max(0.1, 1 / number of retained concepts)."""
    preserve_empty: bool = False
    """Also keep the empty prompt, as the first script does."""
    anchor: str = ""
    """What targets become when they name no anchor of their own."""
    tokens: Tokens = "last"
    """Text vectors used: the last word's one vector; all from the last word through the padding, aligned; or all, place by
    place (ours, for texts of two encoders)."""
    templates: tuple[str, ...] = ("{}",)
    """Phrases each target is put into; anchors and retained words stay bare, as in the first script."""
    technique: Literal["replace", "tensor"] = field(default="replace", metadata=LATER)
    """What a target's answers become: its anchor's, or (tensor) these without the part along the target's own."""

    def __post_init__(self) -> None:
        if not self.lamb > 0:
            raise ExpungeError(
                f"uce's lamb is {self.lamb}: expected a positive number (the system is singular without it)"
            )
        check_not_negative("uce", erase_scale=self.erase_scale)
        if not isinstance(self.preserve_scale, str):
            check_not_negative("uce", preserve_scale=self.preserve_scale)
        phrases(self.templates, "")

    @property
    @override
    def heeds_retain(self) -> bool:
        return self.preserve_scale != 0

    @override
    def stronger(self, times: float) -> "UCE":
        return replace(self, erase_scale=self.erase_scale * times)

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        with torch.no_grad():
            pairs, reading = self._pairs(backbone, task), backbone.tensors(backbone.text_inputs())
            changed = self._solved(pairs, reading, len(task.targets))
            pooled = backbone.pooled_inputs()
            if pooled:
                whole = paired_whole(backbone, self._phrases(task))
                changed |= self._solved(whole, backbone.tensors(pooled), len(task.targets))
        yield Step(index=0, edit=lambda: backbone.edit_of(changed))

    def _solved(self, pairs: Pairs, weights: dict[str, Tensor], targets: int) -> dict[str, Tensor]:
        """The matrices that read the keys, solved for."""
        if self.technique == "replace":
            return ridge_edit(weights, pairs.keys, pairs.goals, pairs.scales, self.lamb)  # Eq. 7
        erased = pairs.sizes[: targets * len(self.templates)]
        return ridge_edit_apart(weights, pairs.keys, pairs.goals, pairs.scales, self.lamb, erased)

    def _pairs(self, backbone: Backbone, task: Task) -> Pairs:
        """Keys, goals and scales of Eq. 7."""
        return paired(backbone, self._phrases(task), self.tokens)

    def _phrases(self, task: Task) -> list[Phrase]:
        """What Eq. 7 sums over: first targets, which go to their anchors, then retained concepts, to themselves."""
        words = ([""] if self.preserve_empty else []) + list(task.retain)
        preserve = max(0.1, 1 / max(1, len(words))) if self.preserve_scale == "auto" else self.preserve_scale
        targets = erased(task.targets, self.anchor, self.templates, self.erase_scale)
        return targets + kept(words, preserve)
