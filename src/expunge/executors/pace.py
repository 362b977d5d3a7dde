"""How long jobs take, by what finished ones took."""

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, final

import torch

from expunge.core.backbone import Backbone
from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.jobs import Job, Workspace
from expunge.jobs.job import seconds_of
from expunge.jobs.kept import RESULT
from expunge.store import read_json


class Tally(NamedTuple):
    """Finished jobs of a kind, added up."""

    jobs: int
    equivalents: int
    seconds: float


@final
class Pace:
    """How long jobs take: by those alike, or else those of their room, or else all.

    What evaluates the denoiser takes time by its evaluations; what does not, such as a measurement, as long as others did.
    """

    def __init__(self, trial: Callable[[], float]) -> None:
        """``trial`` gives evaluations a second; it is asked once, if no job that evaluates has finished."""
        self._trial = cache(trial)
        self._now: dict[tuple[Any, ...], Tally] = {}
        self._earlier: dict[tuple[Any, ...], Tally] = {}

    def add(self, job: Job | Mapping[str, Any], equivalents: int, seconds: float, earlier: bool = False) -> None:
        """A job (or its JSON) took so long; those of earlier runs count where this one has had none alike."""
        tallies = self._earlier if earlier else self._now
        for kind in _kinds(job, equivalents):
            before = tallies.get(kind, Tally(0, 0, 0.0))
            tallies[kind] = Tally(before.jobs + 1, before.equivalents + equivalents, before.seconds + seconds)

    def seconds(self, job: Job | Mapping[str, Any], equivalents: int) -> float:
        """What a job (or its JSON) of so many evaluations should take."""
        for kind in _kinds(job, equivalents):
            tally = self._now.get(kind) or self._earlier.get(kind)
            if tally is not None:
                return tally.seconds * (equivalents / tally.equivalents if equivalents else 1 / tally.jobs)
        return equivalents / self._trial() if equivalents else 0.0


PLUG_INS = ("eraser", "attack", "analysis", "metric")
"""Entries of jobs that name what takes the time."""


def _kinds(job: Job | Mapping[str, Any], equivalents: int) -> list[tuple[Any, ...]]:
    """What a job is alike to, the nearest first; those that evaluate are apart from those that do not."""
    if isinstance(job, Job):
        room, names = job.room, (getattr(job, name) for name in PLUG_INS if hasattr(job, name))
    else:
        room, names = job["room"], (job[name] for name in PLUG_INS if name in job)
    alone = room == "memory"  # counting slows it down
    paced = bool(equivalents)
    return [(paced, room, next(names, None)), (paced, room), *([] if alone else [(paced,)])]


def pace(backbone: Callable[[], Backbone], models: set[str], at: Workspace) -> Pace:
    """How long jobs take: by the store's finished jobs of ``models`` (their hashes), or by a short trial."""
    known = Pace(lambda: _trial(backbone()))
    wanted = {None, *models}  # None: of images alone
    for file in at.store.glob(f"[!.]*/{RESULT}") if at.store.is_dir() else ():
        with contextlib.suppress(ExpungeError, KeyError):  # a damaged one tells nothing
            done = read_json(file)
            if done["job"].get("model_sha256") in wanted:
                known.add(done["job"], Cost(**done["cost"]).equivalents, seconds_of(done), earlier=True)
    return known


def _trial(backbone: Backbone) -> float:
    """Evaluations a second, of a few."""
    with torch.no_grad():
        cond, x = backbone.encode([""]), torch.cat([backbone.noise(i) for i in range(8)])
        backbone.predict(x, 1, cond)
        start = time.perf_counter()
        backbone.predict(x, 1, cond)
    return len(x) / (time.perf_counter() - start)
