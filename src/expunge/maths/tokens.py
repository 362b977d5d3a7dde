"""Tokens as something to be optimised: the nearest one, points between tokens, draws, and gradients past a choice."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override


def nearest(vectors: Float[Tensor, "f d"], table: Float[Tensor, "v d"]) -> Int[Tensor, "f"]:
    """The row of ``table`` in whose direction each vector points most: cosine similarity, the first row of equal ones."""
    unit = torch.nn.functional.normalize
    return (unit(vectors.float(), dim=-1) @ unit(table.float(), dim=-1).T).argmax(-1)


def on_simplex(points: Float[Tensor, "f v"]) -> Float[Tensor, "f v"]:
    r"""The nearest point to each row whose numbers are zero or more and add up to 1 (Duchi et al., ICML 2008).

    .. math:: \min_q \|q - p\|^2 \quad\text{so that}\quad q \ge 0,\ \sum_i q_i = 1

    The solution is :math:`\max(p - \mu, 0)`; the sorted numbers tell how many are left above zero, and with them :math:`\mu`.
    """
    exact = points.to(_wide(points))
    falling = exact.sort(-1, descending=True).values
    ranks = torch.arange(1, points.shape[-1] + 1, device=points.device)
    shift = (falling.cumsum(-1) - 1) / ranks
    kept = (falling > shift).sum(-1, keepdim=True)
    return (exact - shift.gather(-1, kept - 1)).clamp(min=0).to(points)


def drawn(chances: Float[Tensor, "f v"], at: Float[Tensor, "f"]) -> Int[Tensor, "f"]:
    """A token for each row of ``chances``: the one whose share of their sum ``at``, a number from 0 to below 1, falls into."""
    summed = chances.to(_wide(chances)).cumsum(-1)
    place = at.to(summed)[:, None] * summed[:, -1:]
    return torch.searchsorted(summed, place, right=True)[:, 0].clamp(max=chances.shape[-1] - 1)


def through(soft: Float[Tensor, "*s"], hard: Float[Tensor, "*s"], clip: float | None = None) -> Float[Tensor, "*s"]:
    """``hard``, bit for bit, with the gradient handed on to ``soft`` as it comes: a straight-through estimator.

    With ``clip`` each number of the gradient is cut to lie between -clip and clip.
    """
    return _Through.apply(soft, hard, clip)  # pyright: ignore[reportReturnType]


class _Through(torch.autograd.Function):
    """Of two tensors the second one; the gradient goes to the first."""

    @staticmethod
    @override
    def forward(ctx: Any, soft: Tensor, hard: Tensor, clip: float | None) -> Tensor:
        ctx.clip = clip
        return hard.detach().clone()

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient if ctx.clip is None else gradient.clamp(-ctx.clip, ctx.clip), None, None


def _wide(like: Tensor) -> torch.dtype:
    """The widest precision that the device of a tensor has: sums over a whole vocabulary need it."""
    return torch.float32 if like.device.type == "mps" else torch.float64
