"""What finished jobs take on disk, and how to free it."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from expunge.jobs import ROOMS, kept
from expunge.jobs.kept import RESULT
from expunge.store import claimed

LEFTOVERS = "leftovers"
"""What killed runs left behind, as if it were a room."""


class Taken(NamedTuple):
    """What a room's jobs take."""

    jobs: int
    bytes: int


def disk(store: Path) -> dict[str, Taken]:
    """Jobs and bytes by room, and what killed runs left behind."""
    taken: dict[str, Taken] = {}
    for path, room in _folders(store):
        before = taken.get(room, Taken(0, 0))
        taken[room] = Taken(before.jobs + 1, before.bytes + kept.taken(path))
    return taken


def clean(store: Path, rooms: Sequence[str]) -> int:
    """Delete the jobs of ``rooms`` (`LEFTOVERS` are what killed runs left behind); returns the bytes freed."""
    freed = 0
    for path, room in _folders(store):
        if room not in rooms:
            continue
        name = path.name
        if name.startswith("."):
            name = name.removeprefix(".").removesuffix(".old").rpartition(".")[0]
        with claimed(path.with_name(name), wait=False) as ours:
            if ours:  # a running job's files stay
                freed += kept.taken(path)
                kept.remove(path)
    return freed


def _folders(store: Path) -> Iterator[tuple[Path, str]]:
    """The store's folders that are expunge's, each with its room."""
    for path in sorted(store.iterdir()) if store.is_dir() else ():
        name = path.name.lstrip(".").split("-")[0]
        if path.is_dir() and name in ROOMS:
            if path.name.startswith("."):
                yield path, LEFTOVERS
            elif (path / RESULT).is_file():
                yield path, name
            elif re.fullmatch(rf"{name}-[0-9a-f]{{24}}", path.name):  # deleted by half
                yield path, LEFTOVERS
