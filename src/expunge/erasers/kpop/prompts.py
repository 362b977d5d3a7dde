"""KPOP's prompts: whose they are, and how the model reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.core.backbone import Conditioning, InjectedPrompt
from expunge.core.eraser import Task

Place = Literal["mid", "mid-up", "down-mid-up", "text"]
Halves = Literal["both", "text"]
Values = Literal["tied", "own"]
Scope = Literal["per-concept", "shared"]
BLOCKS: dict[str, tuple[str, ...]] = {
    "mid": ("mid",),
    "mid-up": ("mid", "up"),
    "down-mid-up": ("down", "mid", "up"),
}
"""The layers that a concatenated prompt is read by, for each place; the other place adds it to the text."""


def injected(
    cond: Conditioning, tokens: Float[Tensor, "b *pair k d"], place: Place, rows: Tensor | None = None
) -> Conditioning:
    """``cond`` with a prompt for each of its ``rows`` (all by default): Table 1 of the paper.

    A pair of prompts is one for the keys and one for the values.
    """
    rows = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device) if rows is None else rows
    if place == "text":
        return replace(cond, embeds=cond.embeds + tokens.to(cond.embeds) * rows[:, None, None])  # (C + p) W
    keys, values = (tokens[:, 0], tokens[:, 1]) if tokens.ndim == 4 else (tokens, None)
    # [C ; p_k] W_k and [C ; p_v] W_v, where p_v = p_k = p unless there is a pair
    return replace(cond, prompt=InjectedPrompt(tokens=keys, values=values, rows=rows, blocks=BLOCKS[place]))


@final
@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of some concepts, and the tensors that are learned for them."""

    scope: Scope
    concepts: Sequence[str]
    shape: tuple[int, ...]
    """Of one prompt: ``[k, d]``, or ``[2, k, d]`` for keys and values."""

    def start(self, std: float, task: Task, like: Tensor) -> dict[str, Tensor]:
        """Random tensors to learn from, in the precision and place of ``like``."""
        whose = {name: ("prompt", name) for name in self.concepts}
        if self.scope == "shared":
            whose = {"shared": ("shared prompt",)}
        return {
            name: std * torch.randn(self.shape, generator=task.generator(*purpose)).to(like)
            for name, purpose in whose.items()
        }

    def of(self, learned: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*pair k d"]]:
        """Each concept's prompt, from the tensors that are learned; differentiable."""
        if self.scope == "shared":
            return dict.fromkeys(self.concepts, learned["shared"])
        return dict(learned)
