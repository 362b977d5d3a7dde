"""EIUP: an erasure prompt is read beside the user's, with a weight that takes away what it finds in the image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.core.attention import AttentionHook
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.eraser import Eraser, Step, Task
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Guidance
from expunge.core.knowledge import Kind
from expunge.core.texts import joined, words_of
from expunge.maths.attention import ReadBeside


@final
@dataclass(frozen=True, kw_only=True)
class ErasurePrompt(Guidance):
    """Have the half with the prompt read ``text`` beside it."""

    eraser = "eiup"
    text: str
    weight: float
    early: float

    @override
    def attention(self, backbone: Backbone, state: dict[str, Any]) -> AttentionHook:
        name = f"{self.id} hook"
        if name not in state:
            with torch.no_grad():
                embeds = backbone.encode([self.text]).embeds
            words, earliest = words_of(backbone, self.text), (1 - self.early) * backbone.training_timesteps
            weights = embeds.new_full((1, words.stop - words.start), self.weight, dtype=torch.float32)
            state[name] = ReadBeside(embeds, words, weights, earliest)
        return state[name]


@final
@dataclass(frozen=True, kw_only=True)
class EIUP(Eraser):
    r"""Look for the concept in the image itself, by its words, and take what is found out of each layer's cross-attention.

    .. math:: \mathrm{out} = M V(c) + w \sum_{j \in c'} M'_j V(c')_j,\qquad M = \mathrm{softmax}(Q K(c)^T / \sqrt d),\quad
        M' = \mathrm{softmax}(Q K(c')^T / \sqrt d)

    2408.01014; methods.md A14. c is the prompt, :math:`c'` the erasure prompt: the targets' words, of which j runs over those
    alone. What is suppressed depends on what the image shows and not on the prompt's words. The weights stay as they are. The
    paper's w is not published in any source that was found: the default is this project's. Acts without guidance, too.
    Ignores the retain list.
    Deviations: one branch instead of two. The authors draw the unedited image beside and take its maps M and, early on, its
    self-attention, at twice the cost; here M comes from the edited image's own queries, which leaves self-attention as it is.
    The erasure prompt stands beside the whole text, where theirs takes the place of padding after the last word. The first
    80 % of steps are counted in timesteps; after those the prompt is read alone, where theirs is read with the concept's words
    in it. The weight that their later version learns is `gie`.
    """

    paper: ClassVar[Paper] = Paper(
        "EIUP: A Training-Free Approach to Erase Non-Compliant Concepts Conditioned on Implicit Unsafe Prompts",
        "Chen et al.",
        2024,
        "2408.01014",
        "https://github.com/CD22104/Growth-Inhibitors-for-Erasure",
    )
    scales: ClassVar[bool] = False
    requires: ClassVar[Sequence[str]] = ("cross-attention",)
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {}
    tuning: ClassVar[Sequence[str]] = ("weight", "early", "separator")
    weight: float = -1.0
    """What the erasure prompt's attention is multiplied by, w; below zero it suppresses. No published value: to be searched."""
    early: float = 0.8
    """Share of the timesteps, the noisy ones, in which it is read."""
    separator: str = " "
    """What stands between several targets."""

    def __post_init__(self) -> None:
        if self.weight == 0 or not 0 < self.early <= 1:
            raise ExpungeError(
                f"eiup's weight {self.weight} and early {self.early}: expected a weight other than zero, and a share above 0, "
                "of 1 at most"
            )

    @override
    def stronger(self, times: float) -> "EIUP":
        return replace(self, weight=self.weight * times)

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        text = joined(backbone, [target.name for target in task.targets], self.separator)
        edit = ErasurePrompt(text=text, weight=self.weight, early=self.early)
        yield Step(index=0, edit=lambda: edit)
