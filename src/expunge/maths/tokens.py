"""Tokens as something to be optimised: the nearest one, points between tokens, draws, and gradients past a choice."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
    chosen = hard.detach() + (soft - soft.detach())  # of which the second part is zero
    if clip is not None and chosen.requires_grad:
        chosen.register_hook(lambda gradient: gradient.clamp(-clip, clip))
    return chosen


def _wide(like: Tensor) -> torch.dtype:
    """The widest precision that the device of a tensor has: sums over a whole vocabulary need it."""
    return torch.float32 if like.device.type == "mps" else torch.float64
