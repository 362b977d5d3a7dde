"""Pictures as users have them, read as 8 bits of RGB: of more bits, turned, transparent, of several frames."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from expunge.core.errors import ExpungeError, reason


def read_pixels(path: Path, size: tuple[int, int] | None = None) -> UInt8[Tensor, "H W 3"]:
    """One image, the first of its frames, as a viewer shows it; its middle, scaled to (height, width), if a ``size`` is given.

    Turned as its EXIF says; 16 bits by their upper 8, as OpenCV and Pillow read colours of 16; floats from 0 to 1; what is
    transparent on white.

    Raises:
        ExpungeError: if it is not an image, or one whose white is not known.
    """
    try:
        with Image.open(path) as image:
            whole = _shown(image)
            fitted = whole if size is None else ImageOps.fit(whole, (size[1], size[0]), Image.Resampling.LANCZOS)
            return torch.from_numpy(np.array(fitted))
    except Exception as error:  # readers of foreign formats raise whatever they meet
        raise _unreadable(path, error) from error


def shown_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as `read_pixels` reads it.

    Raises:
        ExpungeError: if it is not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # by a quarter, as its EXIF says
            return (width, height) if turned else (height, width)
    except Exception as error:
        raise _unreadable(path, error) from error


def read_views(path: Path) -> Iterator[UInt8[Tensor, "H W 3"]]:
    """All that an image file shows: each frame as in `read_pixels`, and what lies under transparency, which many loaders show.

    Raises:
        ExpungeError: as `read_pixels`, for any of the frames.
    """
    try:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                yield torch.from_numpy(np.array(_shown(frame)))
                if frame.has_transparency_data:
                    yield torch.from_numpy(np.array(_turned(frame).convert("RGBA").convert("RGB")))
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ExpungeError:
    unknown = isinstance(error, UnidentifiedImageError)
    why = "it is of no kind that Pillow knows" if unknown else reason(error) or type(error).__name__
    return ExpungeError(f"'{path}' is not a readable image: {why}")


def _shown(image: Image.Image) -> Image.Image:
    """A frame in 8 bits of RGB, as a viewer shows it."""
    turned = _turned(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image, np.array(turned))).convert("RGB")
    if not image.has_transparency_data:
        return turned.convert("RGB")
    over = turned.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    """A frame as its EXIF says it is held; EXIF that cannot be read says nothing."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _eight_bits(image: Image.Image, values: Any) -> Any:
    """Grey of more than 8 bits, or of floats from 0 to 1, in 8 bits."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:
            raise ExpungeError(f"it holds floats from {low:.3g} to {high:.3g}: expected 0 to 1, or 8 or 16 bits")
        grey = np.round(values * 255).astype(np.uint8)
    elif image.mode.startswith("I;16") or image.format == "PPM":  # whose other depths are scaled to 16 by Pillow
        grey = (values >> (int(tags.get(258, (16,))[0]) - 8)).astype(np.uint8)
    else:
        raise ExpungeError("it holds signed or 32-bit whole numbers, whose white is not known: expected 8 or 16 bits")
    return 255 - grey if tags.get(262) == 0 else grey  # white is zero, which Pillow heeds for 8 bits alone
