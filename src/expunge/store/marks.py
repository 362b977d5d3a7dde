"""Marks on images of a folder: boxes and masks, as the imagefolder layout has them in its ``metadata.jsonl``.

``"objects": {"bbox": [[x, y, width, height]], "categories": ["church"]}`` are boxes in pixels of the image as a viewer shows it
(categories may be left out), and ``"mask_file_name"`` names a picture of its size that is white where something is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image, ImageOps
from torch import Tensor

from expunge.core.errors import ExpungeError
from expunge.core.query import Box, Shot
from expunge.store.pixels import read_pixels, shown_size

WHITE = 128
"""From which brightness on a pixel of a mask counts."""


def read_boxes(row: Mapping[str, Any]) -> tuple[Box, ...]:
    """The boxes of an image, from its line of metadata; none if it has none.

    Raises:
        TypeError, ValueError: if these are no boxes, or not as many as there are categories.
    """
    objects = row.get("objects")
    if not isinstance(objects, dict) or "bbox" not in objects:  # nothing, or something of somebody else's
        return ()
    corners = objects["bbox"]
    names = objects.get("categories") or [None] * len(corners)
    boxes: list[Box] = []
    for corner, name in zip(corners, names, strict=True):
        x, y, width, height = map(float, corner)
        boxes.append(Box(x, y, width, height, None if name is None else str(name)))
    if any(not (box.width > 0 and box.height > 0) for box in boxes):
        raise ValueError("a box without a size")
    return tuple(boxes)


def read_mask(path: Path, of: Path, size: tuple[int, int] | None = None) -> Bool[Tensor, "H W"]:
    """The mask at ``path`` of the image ``of``; its middle, scaled to (height, width) as the image is, if a ``size`` is given.

    Raises:
        ExpungeError: if it cannot be read, or is not of the image's size.
    """
    pixels = read_pixels(path)
    own, other = tuple(pixels.shape[:2]), shown_size(of)
    if own != other:
        raise ExpungeError(
            f"the mask '{path}' is {own[1]} x {own[0]}, its image {other[1]} x {other[0]}: expected the same"
        )
    if size is not None:
        grey = Image.fromarray(pixels.numpy()).convert("L")
        fitted = ImageOps.fit(grey, (size[1], size[0]), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(fitted)) >= WHITE
    return pixels.float().mean(-1) >= WHITE


def fitted(shot: Shot, size: tuple[int, int] | None) -> Shot:
    """An image of a file with its marks, cut and scaled to (height, width) if a ``size`` is given.

    Raises:
        ExpungeError: for a box that reaches out of its image, such as one in other units than pixels.
    """
    mask = shot.mask
    if isinstance(mask, partial):
        mask = partial(read_mask, *mask.args, size)
    boxes = shot.boxes
    if boxes:
        shown = shown_size(shot.path)
        _check_inside(shot, shown)
        boxes = boxes if size is None else fit_boxes(boxes, shown, size)
    return replace(shot, pixels=partial(read_pixels, shot.path, size), boxes=boxes, mask=mask)


def _check_inside(shot: Shot, size: tuple[int, int]) -> None:
    for box in shot.boxes:
        if not box.inside(*size):
            raise ExpungeError(
                f"'{shot.path}' is {size[1]} x {size[0]} and has a box at {box.x:g}, {box.y:g} of {box.width:g} x "
                f"{box.height:g}: expected x, y, width and height in pixels, inside the image"
            )


class _Cut(NamedTuple):
    """The middle of an image that has the proportions of a size, and how it is scaled."""

    left: float
    top: float
    scale_x: float
    scale_y: float


def fit_boxes(boxes: Sequence[Box], old: tuple[int, int], new: tuple[int, int]) -> tuple[Box, ...]:
    """Boxes of an image of one (height, width) that is cut and scaled to another; what lies outside is cut off."""
    cut = _cut(old, new)
    kept: list[Box] = []
    for box in boxes:
        left, right = ((x - cut.left) * cut.scale_x for x in (box.x, box.x + box.width))
        top, bottom = ((y - cut.top) * cut.scale_y for y in (box.y, box.y + box.height))
        left, right = max(left, 0.0), min(right, float(new[1]))
        top, bottom = max(top, 0.0), min(bottom, float(new[0]))
        if left < right and top < bottom:
            kept.append(Box(left, top, right - left, bottom - top, box.label))
    return tuple(kept)


def _cut(old: tuple[int, int], new: tuple[int, int]) -> _Cut:
    """What `PIL.ImageOps.fit` keeps of an image."""
    ratio = new[1] / new[0]
    width, height = min(float(old[1]), ratio * old[0]), min(float(old[0]), old[1] / ratio)
    return _Cut((old[1] - width) / 2, (old[0] - height) / 2, new[1] / width, new[0] / height)
