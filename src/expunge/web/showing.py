"""What a run's files show: where it stands, its images so far on equal seeds, and its numbers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

from expunge.core.errors import ExpungeError
from expunge.core.times import duration
from expunge.report import of_plan
from expunge.report.album import Album, album
from expunge.report.run import Side
from expunge.results import tables
from expunge.results.files import PLAN, PROGRESS, SIDES, SUMMARY
from expunge.results.grid import Table
from expunge.results.group import Group
from expunge.results.recoveries import BARE, injected
from expunge.store.atomic import read_json, read_lines
from expunge.store.listing import METADATA
from expunge.web.processes import Runner, begun, last_words
from expunge.web.served import OURS, WRITTEN, Served
from expunge.web.wishes import ORIGINAL, SPLIT, read_plan

SHOWN = 6
"""Images of each concept that the page shows at most."""
State = Literal["running", "finished", "stopped", "ready"]


class Doing(NamedTuple):
    """A job that is being done."""

    what: str
    seconds: float


@final
@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands."""

    name: str
    about: str
    state: State
    why: str = ""
    """What its process said at last, where it stopped before its end."""
    done: int = 0
    total: int | None = None
    """Jobs; None while they are being planned."""
    doing: Sequence[Doing] = ()
    seconds: float = 0.0
    """Since it began."""
    left: float | None = None
    """Seconds until its end, as far as anybody knows."""

    @property
    def share(self) -> int:
        """Percent of its jobs that are done."""
        return 100 if self.state == "finished" else 100 * self.done // self.total if self.total else 0

    @property
    def line(self) -> str:
        """All of it in a line."""
        if self.state == "finished":
            return "finished"
        if self.state == "ready":
            return "not begun"
        jobs = "planning" if self.total is None else f"{self.done} of {self.total} jobs"
        if self.state == "stopped":
            return f"stopped: {self.why or 'its process was killed'}"
        rest = "" if self.left is None else f", about {duration(self.left)} left"
        return f"{jobs}, {duration(self.seconds)} so far{rest}"


def standing(name: str, runner: Runner, clock: Callable[[], float] = time.time) -> Standing:
    """Where a run stands now, from its files and whether its process is alive.

    Raises:
        ExpungeError: if there is no such run.
    """
    folder = runner.served.run(name)
    about = str(_said(name, runner.served).get("about", ""))
    told, now = _progress(folder), clock()
    if runner.running() == name:
        began = float(told.get("began", now))
        doing = [Doing(f"{d['room']} {d['what']}", max(0.0, now - d["began"])) for d in told.get("running", [])]
        left = told.get("seconds_left")
        rest = None if left is None else max(0.0, left - (now - told["at"]))
        counts: dict[str, Any] = {"done": told.get("done", 0), "total": told.get("total")}
        times: dict[str, Any] = {"seconds": max(0.0, now - began), "left": rest, "doing": doing}
        return Standing(name=name, about=about, state="running", **counts, **times)
    if _whole(folder, told):
        return Standing(name=name, about=about, state="finished", done=told.get("done", 0), total=told.get("total"))
    why = last_words(folder)
    if not (begun(folder) or (folder / PLAN).is_file()):
        return Standing(name=name, about=about, state="ready")
    jobs: dict[str, Any] = {"done": told.get("done", 0), "total": told.get("total")}
    return Standing(name=name, about=about, state="stopped", why=why, **jobs)


def _progress(folder: Path) -> dict[str, Any]:
    """What a run said at last of itself; nothing if it said nothing yet."""
    try:
        told = read_json(folder / PROGRESS)
        return told if {"began", "at", "running", "done"} <= set(told) else {}
    except ExpungeError:
        return {}


def _whole(folder: Path, told: Mapping[str, Any]) -> bool:
    """Whether a run has come to its end since it was begun at last; one of the command line may have said nothing."""
    if not (folder / SUMMARY).is_file():
        return False
    if not told:
        return not (folder / WRITTEN).is_file()
    return told["done"] == told.get("total") and (folder / SUMMARY).stat().st_mtime >= told["began"] - 1.0


def _said(name: str, served: Served) -> Mapping[str, Any]:
    """The plan of a run, of the page's or of the command line."""
    if name.startswith(f"{OURS}/"):
        return read_plan(name, served)
    return read_json(served.run(name) / PLAN)


# images ---------------------------------------------------------------------------------------------------------------
@final
@dataclass(frozen=True, kw_only=True)
class Shown:
    """The images that a run has made so far, and its numbers."""

    album: Album
    numbers: Sequence[tuple[str, Table]] = field(default_factory=list)
    erased: Sequence[str] = ()
    """What should be gone."""


def shown(name: str, served: Served) -> Shown:
    """What a run has to show so far.

    Raises:
        ExpungeError: if there is no such run, or a file of it is damaged.
    """
    folder = served.run(name)
    sides = tuple(_sides(folder, served.store))
    summary = read_lines(folder / SUMMARY) if _current(folder) else []
    numbers = {
        "Removed and kept": tables.measured(summary),
        "Recovery with the private key": tables.recoveries(summary, bare=True),
    }
    return Shown(
        album=_album(sides),
        numbers=[(title, table) for title, table in numbers.items() if table.rows],
        erased=list(dict.fromkeys(target for side in sides for target in side.targets)),
    )


def _current(folder: Path) -> bool:
    """Whether a run's numbers are of its text and images: a run that was begun since has none until it is whole."""
    summary, sides = folder / SUMMARY, folder / SIDES
    return summary.is_file() and not (sides.is_file() and sides.stat().st_mtime > summary.stat().st_mtime)


@lru_cache(maxsize=32)
def _album(sides: tuple[Side, ...]) -> Album:
    """The images of folders, which do not change once they are there."""
    return album(sides, SHOWN)


def _sides(folder: Path, store: Path) -> list[Side]:
    """The image folders of a run that are there by now: of its first training seed, and the first run of an attack."""
    if not (folder / SIDES).is_file():  # nobody watched it
        return list(of_plan.read(folder, store).sides) if (folder / SUMMARY).is_file() else []
    told = read_json(folder / SIDES).get("sides", [])
    found: dict[tuple[str, str, str], Side] = {}
    for side in told:
        group, place = Group.parse(side["group"]), of_plan.within(store, side["folder"])
        if side["run"] == 0 and (place / METADATA).is_file():
            one = Side(
                name=_called(side["method"], group),
                scene=_scene(group, side),
                folder=place,
                targets=tuple(side["targets"]),
            )
            found.setdefault((one.scene, one.name, str(one.targets)), one)
    return list(found.values())


def _called(method: str, group: Group) -> str:
    """What a side is called: the model as it is, erased, recovered."""
    return f"{method}, {injected(group)}" if group.kind == "key" and group != BARE else method


def _scene(group: Group, side: Mapping[str, Any]) -> str:
    """Which prompts a side is of; those of the page's own plans have no more than one split."""
    own = "" if group.kind in ("set", "key") else str(group)
    return own if side["split"] == SPLIT else f"{own} {side['split']}".strip()


def titled(side: str) -> str:
    """What a reader calls a side of the page's own erasures: before, erased, recovered."""
    method, comma, key = side.partition(", ")
    return "before" if side == ORIGINAL else f"recovered ({key} key)" if comma else f"erased ({method})"


# all of them ----------------------------------------------------------------------------------------------------------
@final
@dataclass(frozen=True, kw_only=True)
class Card:
    """A run, as the gallery shows it."""

    standing: Standing
    before: str = ""
    after: str = ""
    """The first image of what was erased, as the model draws it and as the edited one does; empty if there is none yet."""
    covered: bool = False


def cards(runner: Runner, most: int = 60) -> list[Card]:
    """The newest runs; what cannot be read is left out."""
    return [card for card in (_card(name, runner) for name in runner.served.runs()[:most]) if card is not None]


def _card(name: str, runner: Runner) -> Card | None:
    try:
        stands, seen = standing(name, runner), shown(name, runner.served)
    except (ExpungeError, KeyError, TypeError):
        return None
    scene = next(iter(seen.album.scenes), None)
    shots = scene["concepts"][0]["shots"] if scene is not None and scene["concepts"] else []
    if scene is None or not shots:
        return Card(standing=stands)
    images, sides = shots[0]["images"], scene["sides"]
    pictures = [seen.album.images[images[side]] if side in images else "" for side in sides[:2]]
    return Card(
        standing=stands, before=pictures[0], after=pictures[1] if len(sides) > 1 else "", covered=shots[0]["covered"]
    )


# two edits ------------------------------------------------------------------------------------------------------------
class Pair(NamedTuple):
    """A prompt and seed, drawn by two edited models; empty where there is no image yet."""

    concept: str
    left: str
    right: str
    covered: bool


def compared(name: str, strength: float, served: Served) -> tuple[Sequence[str], list[Pair]]:
    """The names of two edits, and their images at a strength (0: the model as it is), as far as they are made.

    An edit that has one strength only is shown with it.

    Raises:
        ExpungeError: if the run is not a comparison.
    """
    rows = list(read_plan(name, served)["method"])
    edits = list(dict.fromkeys(row.rpartition(" at ")[0] for row in rows))
    if len(edits) != 2:
        raise ExpungeError(f"'{name}' compares nothing: expected a run that compares two")
    seen = shown(name, served).album
    sides = [_nearest(rows, edit, strength) if strength else ORIGINAL for edit in edits]
    pairs = [
        Pair(concept["name"], _image(seen, shot, sides[0]), _image(seen, shot, sides[1]), shot["covered"])
        for scene in seen.scenes
        for concept in scene["concepts"]
        for shot in concept["shots"]
    ]
    return edits, pairs


def _nearest(rows: Sequence[str], edit: str, strength: float) -> str:
    own = {row: float(row.rpartition(" at ")[2]) for row in rows if row.rpartition(" at ")[0] == edit}
    return min(own, key=lambda row: abs(own[row] - strength))


def _image(seen: Album, shot: Mapping[str, Any], side: str) -> str:
    number = shot["images"].get(side)
    return "" if number is None else seen.images[number]
