"""The testbed's own artists: five strong treatments of the same drawings, each a style as apart as painters are."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

HANDS = ("noto", "fluent", "twemoji")
"""The icon sets whose drawings the artists work from."""
Rgb = np.ndarray
"""Float ``[64, 64, 3]`` in [0, 255]."""


def _gray(rgb: Rgb) -> np.ndarray:
    """Luminance, float ``[64, 64]``."""
    return rgb @ np.array([0.299, 0.587, 0.114])


def _blurred(values: np.ndarray, radius: float) -> np.ndarray:
    """Each channel blurred by a Gaussian."""
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=float)


def _outlines(rgb: Rgb) -> np.ndarray:
    """How much of an edge each pixel lies on, float ``[64, 64]`` in [0, 1]: the steepest of the three channels."""
    across = np.abs(np.diff(rgb, axis=1, prepend=rgb[:, :1])).max(-1)
    down = np.abs(np.diff(rgb, axis=0, prepend=rgb[:1])).max(-1)
    return (np.maximum(across, down) / 70).clip(0, 1)


def print_(rgb: Rgb, ink: np.ndarray, rng: np.random.Generator) -> Rgb:
    """A blueprint: white lines on deep blue, with a faint grid."""
    paper = np.array([28.0, 70.0, 150.0]) + rng.normal(0, 6)
    sheet = np.broadcast_to(paper, rgb.shape).copy()
    sheet[int(rng.integers(8)) :: 8] += 18
    sheet[:, int(rng.integers(8)) :: 8] += 18
    sheet += ink[..., None] * (_gray(rgb)[..., None] - 128) * 0.18
    line = _outlines(rgb)[..., None]
    return sheet * (1 - line) + 245 * line


def water(rgb: Rgb, ink: np.ndarray, rng: np.random.Generator) -> Rgb:
    """Watercolour: pale washes that run over their borders and leave white paper at the rim."""
    paper = np.array([252.0, 248.0, 238.0])
    wash = np.stack([_blurred(rgb[..., c], 1.6) for c in range(3)], -1)
    mask = _blurred(ink * 255, 1.4)[..., None] / 255
    blots = _blurred(rng.random(ink.shape) * 255, 3.0)
    blots = ((blots - blots.mean()) / (blots.std() + 1e-6) * 0.13)[..., None]
    depth = (0.62 + blots).clip(0.25, 0.95) * mask
    painted = paper * (1 - depth) + wash * depth
    rim = (4 * mask * (1 - mask))[..., 0]
    return painted - (rim * 34)[..., None] * (1 - wash / 290)


def window(rgb: Rgb, ink: np.ndarray, rng: np.random.Generator) -> Rgb:
    """Stained glass: bright panes of one colour each, with dark lead between them."""
    centres = np.stack(np.meshgrid(np.arange(4, len(ink), 7.2), np.arange(4, len(ink), 7.2)), -1).reshape(-1, 2)
    centres = centres + rng.uniform(-2.6, 2.6, centres.shape)
    rows, columns = np.mgrid[: len(ink), : len(ink)]
    apart = np.hypot(columns[..., None] - centres[:, 0], rows[..., None] - centres[:, 1])
    pane = apart.argmin(-1)
    kind = pane * 2 + (ink > 0.5)
    count = np.bincount(kind.ravel(), minlength=kind.max() + 1).clip(1)
    colours = np.stack([np.bincount(kind.ravel(), rgb[..., c].ravel(), kind.max() + 1) / count for c in range(3)], -1)
    gray = colours.mean(-1, keepdims=True)
    glass = (gray + (colours - gray) * 1.7).clip(0, 255)[kind] * 0.95
    lead = (kind != np.roll(kind, 1, 0)) | (kind != np.roll(kind, 1, 1))
    lead[0] = lead[:, 0] = False
    return np.where(lead[..., None], 22.0, glass)


def tile(rgb: Rgb, ink: np.ndarray, rng: np.random.Generator) -> Rgb:
    """Pixel art: blocks of four by four, few and loud colours, black behind."""
    blocks = rgb.reshape(16, 4, 16, 4, 3).mean((1, 3))
    covered = ink.reshape(16, 4, 16, 4).mean((1, 3))
    gray = blocks.mean(-1, keepdims=True)
    loud = ((gray + (blocks - gray) * 1.4).clip(0, 255) / 63.75).round() * 63.75
    drawn = np.where(covered[..., None] > 0.4, loud.clip(40, 255), 12.0 + 10 * rng.random())
    return drawn.repeat(4, 0).repeat(4, 1)


def lead(rgb: Rgb, ink: np.ndarray, rng: np.random.Generator) -> Rgb:
    """Pencil: gray strokes on white paper, hatched where the drawing is dark."""
    shade = (1 - _gray(rgb) / 255) * ink
    rows, columns = np.mgrid[: len(ink), : len(ink)]
    phase = rng.uniform(0, 6.28)
    hatch = 0.5 + 0.5 * np.sin((rows + columns) * 1.55 + phase)
    cross = 0.5 + 0.5 * np.sin((rows - columns) * 1.55 + phase)
    strokes = shade * hatch * 150 + (shade > 0.55) * cross * 60
    line = np.maximum(_outlines(rgb) * ink, _outlines(np.repeat(ink[..., None] * 255, 3, -1)))
    gray = 250 - strokes - line * 170 + rng.normal(0, 3, rgb.shape[:2])
    return np.repeat(gray[..., None], 3, -1)


ARTISTS: dict[str, Callable[[Rgb, np.ndarray, np.random.Generator], Rgb]] = {
    "print": print_,
    "water": water,
    "window": window,
    "tile": tile,
    "lead": lead,
}
"""By the word of captions (one token, in no object's name): of the drawing, its coverage of the paper, and chance."""


def treated(name: str, rgb: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scene as the artist would do it: uint8 ``[64, 64, 3]``, of the drawing and its coverage ``ink`` in [0, 1]."""
    return ARTISTS[name](rgb.astype(float), ink, rng).clip(0, 255).astype(np.uint8)
