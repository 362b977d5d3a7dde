"""Bench: run a plan's jobs, each once, and put their records and a table together."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from expunge.core.backbone import Backbone
from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.results import summary
from expunge.results.files import PLAN
from expunge.stages import jobs
from expunge.stages.gathered import gathered, wanted
from expunge.stages.plan import Plan
from expunge.stages.planner import Planned, Planner, flattened
from expunge.store import FORMAT, claimed, read_json, write_json


@final
@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands."""

    done: int
    total: int
    job: Planned | None
    """The job that begins, or None at the end."""
    job_seconds: float
    """What that job should take."""
    seconds_left: float
    """What it and all after it should take; what was finished before the run is in none of these."""


def waiting(measurements: Sequence[Planned], store: Path) -> list[Planned]:
    """The jobs still to be run, in order; what only finished measurements stand on is not made again."""
    return flattened(measurements, lambda planned: jobs.result(planned.job, store) is not None)


def run(
    plan: Plan,
    store: Path,
    out: Path,
    *,
    changed: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing and write ``records.jsonl``, ``summary.jsonl`` and ``table.md``; returns the summary's rows.

    Killed at any moment and started again, it ends with the same numbers, bit for bit on the same machine.

    Raises:
        ExpungeError: if ``out`` belongs to another plan or to an earlier text of this one, unless ``changed``.
    """
    planner = Planner(plan)
    measurements = planner.planned()
    _claim(plan, out, changed)
    todo = waiting(measurements, store)
    times = None if on_progress is None else pace(planner, store)
    for done, planned in enumerate(todo):
        if on_progress is not None and times is not None:
            left = [times.seconds(p.job, p.cost.equivalents) for p in todo[done:]]
            on_progress(Progress(done=done, total=len(todo), job=planned, job_seconds=left[0], seconds_left=sum(left)))
        finished = jobs.run_job(planned.job, store)
        if times is not None:
            times.add(planned.job, planned.cost.equivalents, finished["seconds"])
    if on_progress is not None:
        on_progress(Progress(done=len(todo), total=len(todo), job=None, job_seconds=0.0, seconds_left=0.0))
    return summary.write(wanted(planner), gathered(measurements, store), out)


def retold(plan: Plan, results: Path, out: Path) -> list[dict[str, Any]]:
    """Judge the claims of ``plan`` and draw its figures from the records and summary in ``results``, and run nothing.

    Raises:
        ExpungeError: if the file is no JSON Lines, has no summary or another plan's; or if ``out`` holds a run's results.
    """
    return summary.write_again(wanted(Planner(plan)), results, out)


def _claim(plan: Plan, out: Path, changed: bool) -> None:
    """Write down which plan the results in ``out`` belong to."""
    now, empty = (
        json.loads(json.dumps({"format": FORMAT, **asdict(p)})) for p in (plan, Plan(about="", set="", grid={}))
    )
    file = out / PLAN
    if file.is_file() and {**empty, **read_json(file)} != now and not changed:  # an older expunge knew fewer entries
        raise ExpungeError(
            f"'{out}' holds results of another text of this plan: expected the same text, another --out, or --changed "
            "(finished jobs that it still asks for are kept)"
        )
    write_json(file, now, overwrite=True)


# what it will take, and what it takes ---------------------------------------------------------------------------------
class Tally(NamedTuple):
    """Finished jobs of a kind, added up."""

    jobs: int
    equivalents: int
    seconds: float


@final
class Pace:
    """How long jobs take, by what finished ones took: those alike, or else those of their room, or else all.

    What evaluates the denoiser takes time by its evaluations; what does not, such as a measurement, as long as others did.
    """

    def __init__(self, trial: Callable[[], float]) -> None:
        """``trial`` gives evaluations a second; it is asked once, if no job that evaluates has finished."""
        self._trial = cache(trial)
        self._now: dict[tuple[Any, ...], Tally] = {}
        self._earlier: dict[tuple[Any, ...], Tally] = {}

    def add(self, job: jobs.Job, equivalents: int, seconds: float, earlier: bool = False) -> None:
        """A job took so long; those of earlier runs count where this one has had none alike."""
        tallies = self._earlier if earlier else self._now
        for kind in _kinds(job, equivalents):
            before = tallies.get(kind, Tally(0, 0, 0.0))
            tallies[kind] = Tally(before.jobs + 1, before.equivalents + equivalents, before.seconds + seconds)

    def seconds(self, job: jobs.Job, equivalents: int) -> float:
        """What a job should take."""
        for kind in _kinds(job, equivalents):
            tally = self._now.get(kind) or self._earlier.get(kind)
            if tally is not None:
                return tally.seconds * (equivalents / tally.equivalents if equivalents else 1 / tally.jobs)
        return equivalents / self._trial() if equivalents else 0.0


def _kinds(job: jobs.Job, equivalents: int) -> list[tuple[Any, ...]]:
    """What a job is alike to, the nearest first; those that evaluate are apart from those that do not."""
    what = next((job[name] for name in ("eraser", "attack", "analysis", "metric") if name in job), None)
    alone = job["room"] == "memory"  # counting slows it down
    paced = bool(equivalents)
    return [(paced, job["room"], what), (paced, job["room"]), *([] if alone else [(paced,)])]


def pace(planner: Planner, store: Path) -> Pace:
    """How long a plan's jobs take: by the store's finished jobs of this model, or by a short trial."""
    found = Pace(lambda: _trial(planner.backbone))
    wanted = {
        None,
        planner.identity(planner.plan.dtype),
        planner.identity(planner.image_dtype),
    }  # None: of images alone
    for file in store.glob(f"[!.]*/{jobs.RESULT}") if store.is_dir() else ():
        done = read_json(file)
        if done["job"].get("model_sha256") in wanted:
            found.add(done["job"], Cost(**done["cost"]).equivalents, done["seconds"], earlier=True)
    return found


def _trial(backbone: Backbone) -> float:
    """Evaluations a second, of a few."""
    with torch.no_grad():
        cond, x = backbone.encode([""]), torch.cat([backbone.noise(i) for i in range(8)])
        backbone.predict(x, 1, cond)
        start = time.perf_counter()
        backbone.predict(x, 1, cond)
    return len(x) / (time.perf_counter() - start)


class Room(NamedTuple):
    """What a kind of job takes on disk."""

    jobs: int
    bytes: int


def disk(store: Path) -> dict[str, Room]:
    """Jobs and bytes by room, and what killed runs left behind."""
    found: dict[str, Room] = {}
    for path in sorted(store.iterdir()) if store.is_dir() else ():
        room = _room(path)
        if room is not None:
            size = _size(path)
            before = found.get(room, Room(0, 0))
            found[room] = Room(before.jobs + 1, before.bytes + size)
    return found


def clean(store: Path, rooms: Sequence[str]) -> int:
    """Delete the jobs of ``rooms`` (``leftovers`` are what killed runs left behind); returns the bytes freed."""
    freed = 0
    for path in sorted(store.iterdir()) if store.is_dir() else ():
        room = _room(path)
        if room not in rooms:
            continue
        name = path.name
        if room == "leftovers":
            name = name.removeprefix(".").removesuffix(".old").rpartition(".")[0]
        with claimed(path.with_name(name), wait=False) as ours:
            if ours:  # a running job's files stay
                freed += _size(path)
                shutil.rmtree(path, ignore_errors=True)
    return freed


def _size(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a running job may take it away
            total += file.stat().st_size if file.is_file() else 0
    return total


def _room(path: Path) -> str | None:
    """The room that a folder of the store belongs to; None for what is not expunge's."""
    name = path.name.lstrip(".").split("-")[0]
    if not path.is_dir() or name not in jobs.ROOMS:
        return None
    return "leftovers" if path.name.startswith(".") else name if (path / jobs.RESULT).is_file() else None
