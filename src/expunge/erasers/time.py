"""TIME: a closed-form edit that has the words of one prompt read as the same words of another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import phrases
from expunge.core.eraser import Eraser, Step, Task
from expunge.core.errors import check_positive
from expunge.core.knowledge import Kind
from expunge.maths.closed_form import ridge_edit


@final
@dataclass(frozen=True, kw_only=True)
class TIME(Eraser):
    r"""Have the cross-attention read every token of a source prompt as it reads that token in a destination prompt.

    .. math:: W' = \Big(\lambda W + \sum_i W c^*_{\sigma(i)} c_i^T\Big) \Big(\lambda I + \sum_i c_i c_i^T\Big)^{-1}

    Equation 5 of 2303.08084; methods.md A6. It is UCE's closed form with every scale 1. :math:`c_i` are all vectors of the
    source, the padding among them; :math:`\sigma(i)` is where the destination has the same token. The paper edits assumptions:
    "rose" becomes "blue rose". To erase, the source is the target in each template, and the destination its anchor in it.
    Reads text only: no images, no evaluation of the UNet. Ignores the retain list.
    Deviations: solves in float64. In the paper the destination holds all tokens of the source, in order; an anchor need not, so
    tokens that it lacks are read as those that stand in their place, the last ones as the last (the next one, if none stands
    there). The authors' code makes the A that a prompt begins with small, which CLIP's tokenizers do anyway.
    """

    paper: ClassVar[Paper] = Paper(
        "Editing Implicit Assumptions in Text-to-Image Diffusion Models",
        "Orgad et al.",
        2023,
        "2303.08084",
        "https://github.com/bahjat-kawar/time-diffusion",
    )
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {"anchor": "anchor", "templates": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("edit_keys",)
    requires: ClassVar[Sequence[str]] = ("cross-attention",)
    lamb: float = 0.1
    """Pull towards the old weights, lambda in Eq. 5."""
    anchor: str = ""
    """What targets become when they name no anchor of their own."""
    templates: tuple[str, ...] = ("{}", "A photo of {}", "An image of {}", "A picture of {}")
    """Phrases that targets and anchors are put into: the prompt itself, and the paper's augmentations."""
    edit_keys: bool = True
    """Also edit the key matrices (the authors' `with_to_k`); the value matrices alone if not."""

    def __post_init__(self) -> None:
        check_positive("time", lamb=self.lamb)
        phrases(self.templates, "")

    @override
    def stronger(self, times: float) -> "TIME":
        return replace(self, lamb=self.lamb / times)

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        names = [n for n in backbone.text_inputs() if self.edit_keys or n.endswith(".to_v.weight")]
        pairs = [
            pair
            for t in task.targets
            for pair in zip(
                phrases(self.templates, t.name),
                phrases(self.templates, self.anchor if t.anchor is None else t.anchor),
                strict=True,
            )
        ]
        with torch.no_grad():
            read = [_read_alike(backbone, source, goal) for source, goal in pairs]
            keys, goals = (torch.cat(vectors) for vectors in zip(*read, strict=True))
            changed = ridge_edit(backbone.tensors(names), keys, goals, torch.ones(len(keys)), self.lamb)  # Eq. 5
        yield Step(index=0, edit=lambda: backbone.edit_of(changed))


def _read_alike(backbone: Backbone, source: str, goal: str) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """All vectors of a source prompt, and for each the one of the goal that it should be read as."""
    embeds = backbone.encode([source, goal]).embeds
    places = alignment(_tokens(backbone, source), _tokens(backbone, goal), embeds.shape[1])
    return embeds[0], embeds[1][places]


def _tokens(backbone: Backbone, text: str) -> list[int]:
    """Token ids from the start token to the end token; "an" counts as "a"."""
    ids = backbone.tokenize([text, "a", "an"])
    words, a, an = (row[: end + 1].tolist() for row, end in zip(ids, backbone.end(ids).tolist(), strict=True))
    return [a[1] if [token] == an[1:-1] else token for token in words]


def alignment(source: Sequence[int], goal: Sequence[int], length: int) -> list[int]:
    """For each of ``length`` places of a source prompt the place of a goal prompt that it should be read as.

    Both begin and end with the same two tokens, and are padded after. A token goes to the next place where the goal has it. A
    run of tokens that the goal lacks goes to the run that the goal has there instead, aligned at the end: to the first of it
    where that is shorter, and to the token after it where it is empty. Padding goes to padding.
    """
    places: list[int] = []
    waiting, after = 0, 0
    for token in source:
        found = next((at for at in range(after, len(goal)) if goal[at] == token), None)
        if found is None:
            waiting += 1
            continue
        places += [max(after, found - left) for left in range(waiting, 0, -1)]
        places.append(found)
        waiting, after = 0, found + 1
    places += [len(goal) + i for i in range(length - len(source))]
    return [min(place, length - 1) for place in places[:length]]
