"""The images of a report: the same prompts and seeds of every side, each image once, small, as data URIs."""

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from PIL import Image, UnidentifiedImageError

from expunge.core.errors import ExpungeError
from expunge.core.query import Shot
from expunge.report.run import ORIGINAL, Side
from expunge.report.sensitive import covered
from expunge.store import read_images

SIDE, QUALITY = 384, 95
"""Pixels of the longer side at most, and WebP's quality."""
CONCEPTS = 24
"""Concepts of one set of prompts that are shown at most, evenly spread over it."""
Place = tuple[str | None, str, int]
"""Label, prompt and seed."""


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
    found, known = Album(), dict[str, int]()
    for scene in dict.fromkeys(side.scene for side in sides):
        mine = [side for side in sides if side.scene == scene]
        mine.sort(key=lambda side: side.name != ORIGINAL)
        shots: dict[str, dict[Place, Shot]] = {}
        for side in mine:  # a recovery has a folder for each target
            shots.setdefault(side.name, {}).update({(s.label, s.prompt, s.seed): s for s in read_images(side.folder)})
        asked = list(dict.fromkeys(place for rows in shots.values() for place in rows))
        names = list(dict.fromkeys(label or prompt for label, prompt, _ in asked))
        kept = [names[i * len(names) // CONCEPTS] for i in range(CONCEPTS)] if len(names) > CONCEPTS else names
        if len(names) > len(kept):
            found.notes.append(f"{scene or 'images'}: {len(kept)} of {len(names)} concepts are shown, evenly spread.")
        targets = {target for side in mine for target in side.targets}
        concepts = [
            {
                "name": name,
                "erased": name in targets,
                "shots": [
                    _shot(place, shots, found, known, blur)
                    for place in _first([p for p in asked if (p[0] or p[1]) == name], count)
                ],
            }
            for name in kept
        ]
        concepts.sort(key=lambda concept: not concept["erased"])
        found.scenes.append({"name": scene or "images", "sides": list(shots), "concepts": concepts})
    return found


def _first(places: Sequence[Place], count: int) -> Iterator[Place]:
    """The first seed of each prompt, then the second of each, and so on, ``count`` in all."""
    seeds: dict[str, list[int]] = {}
    for _, prompt, seed in places:
        seeds.setdefault(prompt, []).append(seed)
    rank = {place: sorted(seeds[place[1]]).index(place[2]) for place in places}
    yield from sorted(places, key=lambda place: rank[place])[:count]


def _shot(
    place: Place, shots: Mapping[str, Mapping[Place, Shot]], into: Album, known: dict[str, int], blur: Sequence[str]
) -> dict[str, Any]:
    """One prompt and seed, with the image of every side that has one."""
    label, prompt, seed = place
    images: dict[str, int] = {}
    for side, rows in shots.items():
        if place in rows:
            uri = data_uri(rows[place].path)
            digest = hashlib.sha256(uri.encode()).hexdigest()
            if digest not in known:
                known[digest] = len(into.images)
                into.images.append(uri)
            images[side] = known[digest]
    return {"prompt": prompt, "seed": seed, "covered": covered([label, prompt], blur), "images": images}


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
