"""RECE: a closed-form edit that also erases the vectors which still reach the concept, again and again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import phrases
from expunge.core.eraser import Eraser, Step, Task
from expunge.core.errors import check_counts, check_not_negative, check_positive
from expunge.core.knowledge import Kind
from expunge.maths.closed_form import reaching, ridge_edit
from expunge.maths.text_pairs import Tokens, erased, kept, paired


@final
@dataclass(frozen=True, kw_only=True)
class RECE(Eraser):
    r"""Erase a concept as UCE does, then find in closed form what still reaches it, and erase that; several times over.

    The edit of each round, with :math:`W` the matrix before it (UCE's closed form):

    .. math:: \min_{W'} \sum_i s_e |W' c_i - W g_i|^2 + \lambda_1 \sum_j |W' c_j - W c_j|^2 + \lambda_2 |W' - W|^2

    The first round has the target's own vectors :math:`c`. Every later one has the vectors :math:`c'` that the edited
    matrices :math:`W'_l` of all layers answer as the original ones :math:`W_l` answer :math:`c`:

    .. math:: \min_{c'} \sum_l |W'_l c' - W_l c|^2 + \lambda |c'|^2

    Equations 3 and 8 of 2407.12383 (as the authors' readme, and others' code, number them); methods.md A16. The defaults are
    those for nudity. Yields a step a round, the first of which is UCE's. Reads text only: no images, no evaluation of the UNet.
    Deviations: the paper itself could not be read here beyond its abstract, so what it leaves to the code is the code's
    (CharlesGong12/RECE, ``train.py``): later rounds erase the derived vectors alone, on top of the round before; every vector
    of the prompt is derived, and goes to the anchor's in the same place. The authors begin from files that UCE's first script
    made, with its weights; here the first round has the same weights as the others. Solves in float64.
    """

    paper: ClassVar[Paper] = Paper(
        "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models",
        "Gong et al.",
        2024,
        "2407.12383",
        "https://github.com/CharlesGong12/RECE",
    )
    knows: ClassVar[Mapping[str, Kind]] = {"anchor": "anchor", "templates": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("regular_scale", "erase_scale", "preserve_scale", "preserve_empty", "tokens")
    epochs: int = 3
    """Rounds after the first."""
    regular_scale: float = 0.1
    """How much short vectors are preferred where they are derived, lambda in Eq. 8."""
    lamb: float = 0.1
    """Pull towards the weights before a round, lambda_2 in Eq. 3."""
    erase_scale: float = 1.0
    """Weight of each vector that is erased, s_e."""
    preserve_scale: float = 0.1
    """Weight of each vector that is kept, lambda_1 in Eq. 3."""
    preserve_empty: bool = True
    """Also keep the empty prompt, as the authors' code does."""
    anchor: str = " "
    """What targets become when they name no anchor of their own."""
    tokens: Tokens = "tail"
    """Vectors of the first round: the last word's one, all from there through the padding (aligned), or all, place by place."""
    templates: tuple[str, ...] = ("{}",)
    """Phrases each target is put into; anchors and retained words stay bare."""

    def __post_init__(self) -> None:
        check_counts("rece", epochs=self.epochs)
        check_positive("rece", regular_scale=self.regular_scale, lamb=self.lamb, erase_scale=self.erase_scale)
        check_not_negative("rece", preserve_scale=self.preserve_scale)
        phrases(self.templates, "")

    @property
    @override
    def heeds_retain(self) -> bool:
        return self.preserve_scale != 0

    @override
    def stronger(self, times: float) -> "RECE":
        return replace(self, erase_scale=self.erase_scale * times)

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        targets = erased(task.targets, self.anchor, self.templates, self.erase_scale)
        texts = targets + kept(([""] if self.preserve_empty else []) + list(task.retain), self.preserve_scale)
        with torch.no_grad():
            start, later = paired(backbone, texts, self.tokens), paired(backbone, texts, "all")
            base = backbone.tensors(backbone.text_inputs())
        gone = sum(later.sizes[: len(targets)])
        edited, first = {name: w.cpu().float() for name, w in base.items()}, 0
        if resume is not None:
            edited, first = {name: resume[name] for name in base}, int(resume["next"])
        for index in range(first, self.epochs + 1):
            pairs = start
            if index > 0:
                derived = reaching(edited, base, later.keys[:gone], self.regular_scale)  # Eq. 8
                pairs = later._replace(keys=torch.cat([derived, later.keys[gone:]]))
            edited = ridge_edit(edited, pairs.keys, pairs.goals, pairs.scales, self.lamb)  # Eq. 3
            yield Step(
                index=index,
                edit=lambda now=edited: backbone.edit_of({name: w.to(base[name]) for name, w in now.items()}),
                state=lambda now=edited, index=index: {**now, "next": torch.tensor(index + 1)},
            )
