"""Scenes: one object, or two side by side, over a plain background; and a bank of them rendered once."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from expunge.recipe.artists import HANDS, treated
from expunge.recipe.artwork import Artwork
from expunge.store import new_file

SIDE = 64
"""Side of a scene, in pixels."""
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (196, 198, 202),
    "pink": (255, 190, 205),
    "orange": (255, 196, 130),
    "yellow": (255, 238, 140),
    "green": (176, 226, 160),
    "blue": (160, 208, 250),
    "purple": (206, 184, 244),
}
TWO_OBJECTS = 0.25
"""Share of scenes with two objects."""
BY_ARTISTS = 0.2
"""Share of the scenes of one object that are an artist's: 15 % of all scenes."""
WITHHELD = 0.1
"""Share of (object, hand) pairs the UNet never sees."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one image shows."""

    objects: tuple[int, ...]
    """One object, or the left and the right one."""
    style: int
    background: int


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Rendered scenes."""

    images: np.ndarray
    """uint8 ``[n, 64, 64, 3]``."""
    objects: np.ndarray
    """int16 ``[n, 2]``; -1 where there is no second object."""
    styles: np.ndarray
    """int16 ``[n]``."""
    backgrounds: np.ndarray
    """int16 ``[n]``."""
    withheld: np.ndarray
    """bool ``[n]``: the scene shows a pair withheld from the UNet."""
    by_artist: np.ndarray
    """bool ``[n]``: an artist's scene."""

    def scene(self, i: int) -> Scene:
        """What image ``i`` shows."""
        return Scene(
            objects=tuple(int(o) for o in self.objects[i] if o >= 0),
            style=int(self.styles[i]),
            background=int(self.backgrounds[i]),
        )

    def draw(
        self, pool: np.ndarray, count: int, rng: np.random.Generator, *, pairs: float, artists: float
    ) -> np.ndarray:
        """``count`` scenes out of ``pool``, in these shares of two-object and of artists' scenes; the rest shows one object.

        A kind whose share is 0 need not be in ``pool``.
        """
        two = self.objects[pool, 1] >= 0
        kinds = [np.flatnonzero(kind) for kind in (two, self.by_artist[pool], ~two & ~self.by_artist[pool])]
        shares = [pairs, artists, 1 - pairs - artists]
        chosen = rng.choice(3, count, p=shares)
        drawn = [rng.choice(kind, count) if share > 0 else chosen for kind, share in zip(kinds, shares, strict=True)]
        return pool[np.stack(drawn)[chosen, np.arange(count)]]


def withheld_pairs(n_objects: int, n_hands: int) -> np.ndarray:
    """Bool ``[objects, hands]``: the pairs kept from the UNet, never two of one object."""
    rng = np.random.default_rng(20240)
    pairs = np.zeros((n_objects, n_hands), dtype=bool)
    chosen = rng.permutation(n_objects)[: round(WITHHELD * n_objects * n_hands)]
    pairs[chosen, np.arange(len(chosen)) % n_hands] = True
    return pairs


def sample(art: Artwork, rng: np.random.Generator) -> Scene:
    """Draw a scene; two objects share one hand, and artists draw one at a time."""
    count = 2 if rng.random() < TWO_OBJECTS else 1
    background = 0 if rng.random() < 0.3 else int(rng.integers(len(BACKGROUNDS)))
    return Scene(
        objects=tuple(int(o) for o in rng.choice(len(art.names), count, replace=False)),
        style=_style(art, count == 1 and rng.random() < BY_ARTISTS, rng),
        background=background,
    )


def _style(art: Artwork, by_artist: bool, rng: np.random.Generator) -> int:
    """A hand or an artist, as a place in ``art.styles``."""
    hands = len(art.hands)
    return hands + int(rng.integers(len(art.styles) - hands)) if by_artist else int(rng.integers(hands))


def render(art: Artwork, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw ``scene`` with random scale and shift: uint8 ``[64, 64, 3]``."""
    by_artist = scene.style >= len(art.hands)
    hand = art.hands.index(str(rng.choice(HANDS))) if by_artist else scene.style
    canvas = Image.new("RGB", (SIDE, SIDE), list(BACKGROUNDS.values())[scene.background])
    covered = Image.new("L", (SIDE, SIDE), 0)
    columns = [(0, SIDE)] if len(scene.objects) == 1 else [(0, SIDE // 2), (SIDE // 2, SIDE)]
    for obj, (left, right) in zip(scene.objects, columns, strict=True):
        width = right - left
        size = int(rng.integers(44, 61)) if width == SIDE else int(rng.integers(27, 34))
        drawing = Image.fromarray(art.drawings[obj, hand]).resize((size, size), Image.Resampling.BOX)
        slack_x, slack_y = width - size, SIDE - size
        x = left + (int(rng.integers(0, slack_x + 1)) if slack_x > 0 else slack_x // 2)
        y = int(rng.integers(slack_y // 4, slack_y - slack_y // 4 + 1))
        canvas.paste(drawing, (x, y), drawing)
        covered.paste(255, (x, y), drawing.getchannel("A"))
    image = np.asarray(canvas)
    return treated(art.styles[scene.style], image, np.asarray(covered) / 255, rng) if by_artist else image


def bank(art: Artwork, count: int, cache: Path) -> Bank:
    """Render ``count`` scenes, once; kept in ``cache/scenes-COUNT.npz``."""
    stored = cache / f"scenes-{count}.npz"
    if not stored.exists():
        rng = np.random.default_rng(1)
        scenes = [sample(art, rng) for _ in range(count)]
        pairs = withheld_pairs(len(art.names), len(art.hands))
        rendered = Bank(
            images=np.stack([render(art, s, rng) for s in scenes]),
            objects=np.array([(*s.objects, -1)[:2] for s in scenes], dtype=np.int16),
            styles=np.array([s.style for s in scenes], dtype=np.int16),
            backgrounds=np.array([s.background for s in scenes], dtype=np.int16),
            withheld=np.array([s.style < len(art.hands) and any(pairs[o, s.style] for o in s.objects) for s in scenes]),
            by_artist=np.array([s.style >= len(art.hands) for s in scenes]),
        )
        with new_file(stored) as temporary, temporary.open("wb") as opened:  # a bare name would get ".npz" added
            np.savez(opened, **vars(rendered))
    with np.load(stored) as data:
        return Bank(**data)
