"""Where something is in an image: cells of a grid, and losses that count some cells more than others."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from expunge.core.errors import ExpungeError
from expunge.core.query import Box


class Grid(NamedTuple):
    """Cells that an image is divided into, all of one size."""

    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """How many there are, T."""
        return self.rows * self.columns


def of_boxes(boxes: Sequence[Box], size: tuple[int, int], grid: Grid) -> Bool[Tensor, "rows columns"]:
    """The cells of an image of (height, width) ``size`` that boxes overlap; one that only touches a cell does not cover it.

    Raises:
        ExpungeError: for a box that is not in the image.
    """
    covered = torch.zeros(grid, dtype=torch.bool)
    for box in boxes:
        if not box.inside(*size):
            raise ExpungeError(
                f"a box at {box.x:g}, {box.y:g} of {box.width:g} x {box.height:g} is not in an image of {size[1]} x {size[0]}: "
                "expected boxes in pixels, inside their image"
            )
        down = _overlapped(box.y, box.height, size[0], grid.rows)
        across = _overlapped(box.x, box.width, size[1], grid.columns)
        covered |= down[:, None] & across[None]
    return covered


def _overlapped(start: int | float, length: int | float, whole: int, parts: int) -> Bool[Tensor, "parts"]:
    """Which of the equal parts of a side a stretch of it overlaps."""
    edges = torch.arange(parts + 1, dtype=torch.float64) * whole / parts
    return (edges[1:] > start) & (edges[:-1] < start + length)


def of_mask(mask: Bool[Tensor, "H W"], grid: Grid) -> Bool[Tensor, "rows columns"]:
    """The cells in which a pixel of a mask is set."""
    covered = torch.zeros(grid, dtype=torch.bool)
    height, width = mask.shape
    at = mask.nonzero()
    covered[at[:, 0] * grid.rows // height, at[:, 1] * grid.columns // width] = True
    return covered


def weights(covered: Bool[Tensor, "rows columns"], alpha: float) -> Float[Tensor, "rows columns"]:
    r"""What each cell counts in a loss: those covered :math:`T / (K + \alpha (T - K))`, the others alpha times that.

    T are the cells, K those that are covered; the weights' sum is T.
    """
    total, inside = covered.numel(), int(covered.sum())
    unit = total / (inside + alpha * (total - inside))
    return torch.where(covered, unit, alpha * unit)


def spread(cells: Float[Tensor, "b rows columns"], size: tuple[int, int]) -> Float[Tensor, "b 1 h w"]:
    """Values of cells, at each place of latents of (height, width) ``size``: that of the cell in which its middle lies."""
    rows, columns = cells.shape[1:]
    down = ((torch.arange(size[0]) + 0.5) * rows / size[0]).long().to(cells.device)
    across = ((torch.arange(size[1]) + 0.5) * columns / size[1]).long().to(cells.device)
    return cells[:, down][:, :, across][:, None]


def weighted_error(
    answer: Float[Tensor, "b c h w"],
    truth: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "b 1 h w"],
    place: Literal["inside", "outside"],
) -> Float[Tensor, ""]:
    r"""Mean of :math:`(w \odot e)^2` with the weight inside the square, or of :math:`w \odot e^2` with it outside."""
    error = answer.float() - truth.float()
    return ((weight * error).square() if place == "inside" else weight * error.square()).mean()
