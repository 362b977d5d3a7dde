"""Cells of a grid and weighted losses, against loops over pixels and sums by hand."""

import math

import pytest
import torch

from expunge.core.errors import ExpungeError
from expunge.core.query import Box
from expunge.maths.geometry import Grid, of_boxes, of_mask, spread, weighted_error, weights


def by_pixels(boxes, size, grid):
    """The cells that hold a quarter pixel of a box, one by one."""
    covered = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    for i in range(4 * size[0]):
        for j in range(4 * size[1]):
            y, x = (i + 0.5) / 4, (j + 0.5) / 4
            if any(b.x < x < b.x + b.width and b.y < y < b.y + b.height for b in boxes):
                covered[math.floor(y * grid.rows / size[0]), math.floor(x * grid.columns / size[1])] = True
    return covered


@pytest.mark.parametrize(
    ("boxes", "size", "grid"),
    [
        ([Box(4, 0, 4, 4)], (16, 16), Grid(4, 4)),  # one cell, to its edges
        ([Box(3.5, 0, 4, 4)], (16, 16), Grid(4, 4)),
        ([Box(0, 0, 16, 16)], (16, 16), Grid(4, 4)),
        ([Box(5, 5, 1, 1), Box(14, 2, 2, 13)], (16, 16), Grid(4, 4)),
        ([Box(1, 7, 9, 2)], (12, 20), Grid(3, 7)),  # columns that no pixel's edge meets
        ([], (16, 16), Grid(2, 3)),
    ],
)
def test_a_box_covers_the_cells_that_it_overlaps(boxes, size, grid):
    assert torch.equal(of_boxes(boxes, size, grid), by_pixels(boxes, size, grid))


def test_a_box_that_only_touches_a_cell_does_not_cover_it():
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 1] = True
    assert torch.equal(of_boxes([Box(16, 0, 16, 16)], (64, 64), Grid(4, 4)), expected)


@pytest.mark.parametrize("box", [Box(-2, 0, 4, 4), Box(0, 14, 4, 4), Box(100, 100, 4, 4), Box(0, 0, 4, 18)])
def test_a_box_outside_its_image_is_refused_in_a_line(box):
    with pytest.raises(ExpungeError, match="is not in an image of 16 x 16: expected boxes in pixels") as error:
        of_boxes([box], (16, 16), Grid(2, 2))
    assert "\n" not in str(error.value)
    of_boxes([Box(-0.4, 0, 16.8, 4)], (16, 16), Grid(2, 2))  # a detector's rounding


def test_a_mask_covers_the_cells_in_which_a_pixel_is_set():
    mask = torch.zeros(12, 16, dtype=torch.bool)
    assert not of_mask(mask, Grid(3, 4)).any()
    mask[3, 4] = mask[4, 3] = mask[11, 15] = True
    expected = torch.zeros(3, 4, dtype=torch.bool)
    for y, x in ((0, 1), (1, 0), (2, 3)):
        expected[y, x] = True
    assert torch.equal(of_mask(mask, Grid(3, 4)), expected)


@pytest.mark.parametrize("alpha", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("inside", [0, 1, 5, 12])
def test_weights_are_the_paper_s_and_sum_to_the_number_of_cells(alpha, inside):
    covered = torch.zeros(12, dtype=torch.bool)
    covered[:inside] = True
    found = weights(covered.reshape(3, 4), alpha).flatten()
    below = inside + alpha * (12 - inside)
    assert found[:inside].tolist() == pytest.approx([12 / below] * inside)
    assert found[inside:].tolist() == pytest.approx([alpha * 12 / below] * (12 - inside))
    assert float(found.sum()) == pytest.approx(12)
    if alpha == 1 or inside in (0, 12):
        assert found.tolist() == pytest.approx([1.0] * 12), "nothing to weigh"


def test_a_place_has_the_value_of_the_cell_that_its_middle_is_in():
    cells = torch.arange(6.0).reshape(1, 2, 3)
    assert torch.equal(spread(cells, (4, 6))[0, 0], torch.kron(cells[0], torch.ones(2, 2)))
    uneven = spread(cells, (5, 7))[0, 0]
    for i in range(5):
        for j in range(7):
            assert uneven[i, j] == cells[0, math.floor((i + 0.5) / 5 * 2), math.floor((j + 0.5) / 7 * 3)]


def test_the_weight_stands_inside_or_outside_the_square():
    answer, truth = torch.tensor([1.0, 4.0]), torch.tensor([0.0, 1.0])  # errors 1 and 3
    weight = torch.tensor([2.0, 0.5])
    shaped = [t.reshape(1, 1, 1, 2) for t in (answer, truth, weight)]
    assert float(weighted_error(*shaped, "inside")) == pytest.approx((2**2 + 1.5**2) / 2)
    assert float(weighted_error(*shaped, "outside")) == pytest.approx((2 * 1 + 0.5 * 9) / 2)
