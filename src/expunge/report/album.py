"""The images of a report: the same prompts and seeds of every side, each image once, small, as data URIs."""

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

from PIL import Image, UnidentifiedImageError

from expunge.core.errors import ExpungeError
from expunge.report.run import ORIGINAL, Side
from expunge.report.sensitive import covered
from expunge.store.listing import Listed, read_listed

SIDE, QUALITY = 384, 95
"""Pixels of the longer side at most, and WebP's quality."""
CONCEPTS = 24
"""Concepts of one set of prompts that are shown at most, evenly spread over it."""


class Asked(NamedTuple):
    """What an image was asked for."""

    label: str | None
    prompt: str
    seed: int

    @property
    def concept(self) -> str:
        """Under which name the page shows it."""
        return self.label or self.prompt


@final
@dataclass(frozen=True, kw_only=True)
class Album:
    """What the page compares."""

    images: list[str] = field(default_factory=list)
    """Data URIs."""
    scenes: list[dict[str, Any]] = field(default_factory=list)
    """Sets of prompts: name, sides, and concepts with their shots; a shot has the number of its image by side."""
    notes: list[str] = field(default_factory=list)
    """What was left out."""


def album(sides: Sequence[Side], count: int, blur: Sequence[str] = ()) -> Album:
    """Images of ``sides``: ``count`` of each concept, the first seeds of its prompts, never chosen by what they show."""
    filling, known = Album(), dict[str, int]()
    for scene in dict.fromkeys(side.scene for side in sides):
        own = [side for side in sides if side.scene == scene]
        own.sort(key=lambda side: side.name != ORIGINAL)
        images: dict[str, dict[Asked, Listed]] = {}
        for side in own:  # a recovery has a folder for each target
            listed = {Asked(one.label, one.prompt, one.seed): one for one in read_listed(side.folder)}
            images.setdefault(side.name, {}).update(listed)
        asked = list(dict.fromkeys(one for rows in images.values() for one in rows))
        names = list(dict.fromkeys(one.concept for one in asked))
        kept = [names[i * len(names) // CONCEPTS] for i in range(CONCEPTS)] if len(names) > CONCEPTS else names
        if len(names) > len(kept):
            filling.notes.append(f"{scene or 'images'}: {len(kept)} of {len(names)} concepts are shown, evenly spread.")
        targets = {target for side in own for target in side.targets}
        concepts = [
            {
                "name": name,
                "erased": name in targets,
                "shots": [
                    _shot(one, images, filling, known, blur)
                    for one in _first([one for one in asked if one.concept == name], count)
                ],
            }
            for name in kept
        ]
        concepts.sort(key=lambda concept: not concept["erased"])
        filling.scenes.append({"name": scene or "images", "sides": list(images), "concepts": concepts})
    return filling


def _first(asked: Sequence[Asked], count: int) -> Iterator[Asked]:
    """The first seed of each prompt, then the second of each, and so on, ``count`` in all."""
    seeds: dict[str, list[int]] = {}
    for one in asked:
        seeds.setdefault(one.prompt, []).append(one.seed)
    rank = {one: sorted(seeds[one.prompt]).index(one.seed) for one in asked}
    yield from sorted(asked, key=lambda one: rank[one])[:count]


def _shot(
    asked: Asked, images: Mapping[str, Mapping[Asked, Listed]], into: Album, known: dict[str, int], blur: Sequence[str]
) -> dict[str, Any]:
    """One prompt and seed, with the image of every side that has one."""
    numbers: dict[str, int] = {}
    for side, rows in images.items():
        if asked in rows:
            uri = data_uri(rows[asked].path)
            digest = hashlib.sha256(uri.encode()).hexdigest()
            if digest not in known:
                known[digest] = len(into.images)
                into.images.append(uri)
            numbers[side] = known[digest]
    hidden = covered([asked.label, asked.prompt], blur)
    return {"prompt": asked.prompt, "seed": asked.seed, "covered": hidden, "images": numbers}


def data_uri(path: Path, side: int = SIDE, quality: int = QUALITY) -> str:
    """An image as a WebP data URI, scaled down to ``side`` pixels if it is larger.

    Raises:
        ExpungeError: if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            written = io.BytesIO()
            small.save(written, "webp", quality=quality, method=4)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ExpungeError(f"'{path}' is not a readable image: {error}") from error
    return "data:image/webp;base64," + base64.b64encode(written.getvalue()).decode()
