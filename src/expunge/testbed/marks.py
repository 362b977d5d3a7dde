"""Marks that are drawn onto images at random places, with known boxes: a watermark, a QR-like square and a word.

Stand-ins for what photographs from the web show unasked. Each always looks the same, so whoever looks for it needs no network.
"""

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expunge.core.errors import ExpungeError, unknown
from expunge.core.query import Box

SQUARE = """
#######
#..#..#
#.##.##
####..#
#.#.###
#.##..#
###.#.#
"""
"""Modules of the QR-like square."""
WORD = """
####.####.#....####
#....#..#.#....#...
####.####.#....####
...#.#..#.#....#...
####.#..#.####.####
"""
"""The word, letter by letter."""


class Mark(NamedTuple):
    """How a mark looks."""

    pattern: Float[Tensor, "h w"]
    """From 0, its dark parts, to 1."""
    dark: float
    """Brightness of the dark parts, from 0 to 255."""
    opacity: float
    """How much of the image below it covers."""


class Composed(NamedTuple):
    """An image with a mark."""

    pixels: UInt8[Tensor, "H W 3"]
    box: Box


@cache
def marks() -> dict[str, Mark]:
    """All marks, by the words that a method is told for them."""
    return {
        "watermark": Mark(_logo(24), 60, 0.55),
        "qr code": Mark(_drawn(SQUARE, 4, 0), 0, 1.0),
        "text": Mark(_drawn(WORD, 2, 2), 20, 1.0),
    }


def mark(name: str) -> Mark:
    """The mark called ``name``.

    Raises:
        ExpungeError: if there is none.
    """
    known = marks()
    if name not in known:
        raise unknown("mark", name, known)
    return known[name]


def _drawn(art: str, scale: int, margin: int) -> Float[Tensor, "h w"]:
    """Dark ``#`` on light ground, each ``scale`` pixels large, with a light margin."""
    rows = art.split()
    light = torch.tensor([[float(sign != "#") for sign in row] for row in rows])
    large = light.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    return torch.nn.functional.pad(large, (margin, margin, margin, margin), value=1.0)


def _logo(side: int) -> Float[Tensor, "h w"]:
    """A light ring with a light cross in it, on dark ground."""
    at = torch.arange(side) - (side - 1) / 2
    y, x = at[:, None], at[None, :]
    radius = (x.square() + y.square()).sqrt()
    ring = (radius < side / 2) & (radius > side / 2 - 3.5)
    cross = ((x - y).abs() < 2.5) | ((x + y).abs() < 2.5)
    return (ring | (cross & (radius < side / 2))).float()


def composed(pixels: UInt8[Tensor, "H W 3"], name: str, seed: int) -> Composed:
    """An image with the mark called ``name`` at a random place of it, the same for the same ``seed``; and the mark's box.

    Raises:
        ExpungeError: for an unknown mark, or an image that is smaller than it.
    """
    drawn = mark(name)
    height, width = drawn.pattern.shape
    room = pixels.shape[0] - height, pixels.shape[1] - width
    if min(room) < 0:
        raise ExpungeError(
            f"the mark '{name}' is {width} x {height}, the image {pixels.shape[1]} x {pixels.shape[0]}: expected a larger one"
        )
    generator = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(0, free + 1, (), generator=generator)) for free in room)
    below = pixels[top : top + height, left : left + width].float()
    colour = drawn.dark + (255 - drawn.dark) * drawn.pattern[..., None]
    out = pixels.clone()
    blended = (1 - drawn.opacity) * below + drawn.opacity * colour
    out[top : top + height, left : left + width] = blended.round().to(torch.uint8)
    return Composed(out, Box(left, top, width, height, name))


FLAT = 0.02
"""Standard deviation, of brightness from -1 to 1, below which a stretch of an image is taken for even."""


def correlations(images: UInt8[Tensor, "b H W 3"], name: str) -> Float[Tensor, "b y x"]:
    r"""How much each stretch of each image looks like a mark: normalised cross-correlation, from -1 to 1.

    .. math:: \frac{\langle x - \bar x,\; m - \bar m \rangle}{\|x - \bar x\|\; \|m - \bar m\|}

    of brightness. It heeds neither contrast nor brightness, so a pale mark counts as a strong one does.

    Raises:
        ExpungeError: for an unknown mark, or images that are smaller than it.
    """
    pattern = mark(name).pattern
    if images.shape[1] < pattern.shape[0] or images.shape[2] < pattern.shape[1]:
        raise ExpungeError(
            f"the mark '{name}' is {pattern.shape[1]} x {pattern.shape[0]} and the images {images.shape[2]} x "
            f"{images.shape[1]}: expected larger ones"
        )
    bright = images.double().mean(-1) / 127.5 - 1
    away = (pattern - pattern.mean()).to(images.device)
    size, count = (pattern.shape[0], pattern.shape[1]), pattern.numel()
    variance = _summed(bright.square(), size) / count - (_summed(bright, size) / count).square()
    length = (count * variance.clamp(min=FLAT**2)).sqrt().float() * away.norm()
    return torch.nn.functional.conv2d(bright.float()[:, None], away[None, None])[:, 0] / length


def _summed(values: Float[Tensor, "b H W"], size: tuple[int, int]) -> Float[Tensor, "b y x"]:
    """The sum over each stretch of (height, width) ``size``, by sums from the upper left corner on."""
    whole = torch.nn.functional.pad(values.cumsum(1).cumsum(2), (1, 0, 1, 0))
    rows = whole[:, size[0] :] - whole[:, : -size[0]]
    return rows[:, :, size[1] :] - rows[:, :, : -size[1]]
