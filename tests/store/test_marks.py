"""Boxes and masks in the metadata of an image folder."""

import json

import pytest
import torch
from PIL import Image

from expunge.core.errors import ExpungeError
from expunge.core.query import Box
from expunge.store import read_any_images, read_images
from expunge.store.marks import fit_boxes


def folder_of(path, row, size=(40, 20), mask=None):
    """A folder of one image of (height, width), whose upper left quarter is white; and what else its line says."""
    path.mkdir()
    pixels = torch.zeros(*size, 3, dtype=torch.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = 255
    Image.fromarray(pixels.numpy()).save(path / "a.png")
    if mask is not None:
        Image.fromarray(mask.byte().mul(255).numpy()).save(path / "a-mask.png")
    line = {"file_name": "a.png", "prompt": "a church", "seed": 0, "label": None, **row}
    (path / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    return path


def test_boxes_and_a_mask_are_read_as_the_metadata_has_them(tmp_path):
    mask = torch.zeros(40, 20, dtype=torch.bool)
    mask[:20, :10] = True
    boxes = {"objects": {"bbox": [[0, 0, 10, 20], [5.5, 1, 2, 3]], "categories": ["church", "dog"]}}
    (shot,) = read_images(folder_of(tmp_path / "x", {**boxes, "mask_file_name": "a-mask.png"}, mask=mask))
    assert shot.boxes == (Box(0, 0, 10, 20, "church"), Box(5.5, 1, 2, 3, "dog"))
    assert torch.equal(shot.mask(), mask)
    assert torch.equal(shot.mask(), shot.pixels()[..., 0] == 255), "it fits its image"
    (bare,) = read_images(folder_of(tmp_path / "bare", {"objects": {"bbox": [[0, 0, 1, 1]]}}))
    assert (bare.boxes, bare.mask) == ((Box(0, 0, 1, 1, None),), None)
    for other in ({}, {"objects": None}, {"objects": ["church"]}, {"objects": {"id": [1]}}):
        name = f"other-{len(list(tmp_path.iterdir()))}"
        assert read_images(folder_of(tmp_path / name, other))[0].boxes == ()


def test_marks_are_cut_and_scaled_with_their_image(tmp_path):
    """A tall image loses 10 rows at each end, and what is left is made twice as large."""
    mask = torch.zeros(40, 20, dtype=torch.bool)
    mask[:20, :10] = True
    row = {"objects": {"bbox": [[0, 0, 10, 20], [0, 35, 5, 5]]}, "mask_file_name": "a-mask.png"}
    (shot,) = read_any_images(folder_of(tmp_path / "x", row, mask=mask), (40, 40))
    assert shot.boxes == (Box(0, 0, 20, 20, None),), "the second lies in what is cut off"
    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[:20, :20] = True
    assert torch.equal(shot.mask(), expected)
    white = shot.pixels()[..., 0] > 128
    assert (white ^ expected).sum() <= 40, "but for the blur of an edge"
    (whole,) = read_any_images(tmp_path / "x")
    assert whole.boxes[1] == Box(0, 35, 5, 5, None)
    assert torch.equal(whole.mask(), mask)


@pytest.mark.parametrize(
    ("old", "new", "box", "expected"),
    [
        ((10, 30), (10, 10), (5, 2, 10, 4), (0, 2, 5, 4)),  # the 10 columns in the middle
        ((10, 30), (20, 20), (12, 2, 4, 4), (4, 4, 8, 8)),
        ((10, 10), (10, 10), (1, 2, 3, 4), (1, 2, 3, 4)),
        ((30, 10), (5, 5), (0, 12, 10, 4), (0, 1, 5, 2)),
    ],
)
def test_a_box_moves_as_its_image_does(old, new, box, expected):
    assert fit_boxes([Box(*box)], old, new) == (Box(*map(float, expected)),)


@pytest.mark.parametrize("box", [[-3, 0, 9, 9], [15, 0, 9, 9], [0, 38, 5, 9], [200, 200, 5, 5], [0, 0, 0.5, 60]])
def test_a_box_outside_its_image_is_refused_and_not_cut_to_nothing(tmp_path, box):
    place = folder_of(tmp_path / "x", {"objects": {"bbox": [[0, 0, 5, 5], box]}})
    for size in (None, (40, 40)):
        with pytest.raises(
            ExpungeError, match=r"a.png' is 20 x 40 and has a box at .*: expected x, y, width and"
        ) as error:
            read_any_images(place, size)
        assert "\n" not in str(error.value)


def test_a_detector_s_rounding_is_no_box_outside(tmp_path):
    (shot,) = read_any_images(folder_of(tmp_path / "x", {"objects": {"bbox": [[-0.2, 0, 20.5, 40.3]]}}), (40, 20))
    assert shot.boxes == (Box(0, 0, 20, 40, None),)


def test_damaged_marks_are_refused_in_a_line(tmp_path):
    small = torch.ones(4, 4, dtype=torch.bool)
    for number, (row, complaint) in enumerate(
        [
            ({"objects": {"bbox": [[0, 0, 10]]}}, "line 1 is damaged"),
            ({"objects": {"bbox": [[0, 0, 0, 5]]}}, "a box without a size"),
            ({"objects": {"bbox": [[0, 0, 1, 1]], "categories": ["a", "b"]}}, "line 1 is damaged"),
            ({"mask_file_name": "none.png"}, "names 'none.png', which does not exist"),
            ({"mask_file_name": "../a.png"}, "names '../a.png', which leads out of the folder"),
        ]
    ):
        with pytest.raises(ExpungeError, match=complaint) as error:
            read_images(folder_of(tmp_path / str(number), row))
        assert "\n" not in str(error.value)
    (shot,) = read_images(folder_of(tmp_path / "small", {"mask_file_name": "a-mask.png"}, mask=small))
    with pytest.raises(ExpungeError, match="is 4 x 4, its image 20 x 40: expected the same"):
        shot.mask()
