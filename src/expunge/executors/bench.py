"""Bench: run a plan's jobs, each once, and put their records and a table together."""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.executors.connection import connected
from expunge.executors.executor import Executor
from expunge.executors.gathered import gathered, wanted
from expunge.executors.machine import usable_cores
from expunge.executors.pace import Pace, pace
from expunge.executors.progress import Progress
from expunge.executors.serial import Serial
from expunge.executors.watched import Watched, write_sides
from expunge.executors.workers import Workers
from expunge.jobs import Job, Workspace, in_order
from expunge.jobs.depots import Depot, ObjectStore, SharedFolder, levelled
from expunge.jobs.job import seconds_of
from expunge.jobs.workspace import model
from expunge.plans.check import checked
from expunge.plans.expand import Measurement, expanded
from expunge.plans.read import typed
from expunge.plans.schema import Plan
from expunge.results import summary
from expunge.results.files import PLAN, SUMMARY
from expunge.store import FORMAT, read_json, reserved, write_json


def executor(workers: int | None, device: str) -> Executor:
    """What runs jobs: ``workers`` processes, as many as there are cores if not given, but one here for a GPU.

    Raises:
        ExpungeError: if ``workers`` is below 1.
    """
    _check_workers(workers)
    count = (usable_cores() if device == "cpu" else 1) if workers is None else workers
    return Serial() if count == 1 else Workers(count=count)


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise ExpungeError(f"--workers {workers}: expected 1 or more")


def shared_store(store: Path, ray: str | None, shared: str | None) -> Depot | None:
    """Where a cluster's machines put jobs: ``store`` itself, or the place that a URL names; None without a cluster.

    Raises:
        ExpungeError: if there is a URL without a cluster, or it is none.
    """
    if ray is None and shared is not None:
        raise ExpungeError(f"--shared {shared} without --ray: expected both, or a folder as --store")
    if ray is None or shared is None:
        return None if ray is None else SharedFolder(store.absolute())
    if "://" not in shared or shared.startswith(("file:", "local:", "memory:")):
        raise ExpungeError(
            f"--shared {shared}: expected a URL such as s3://bucket/path; a folder that all machines mount is --store"
        )
    return ObjectStore(shared.rstrip("/"))


@contextlib.contextmanager
def _running(workers: int | None, device: str, ray: str | None, depot: Depot | None) -> Iterator[Executor]:
    """What runs jobs, as long as the block lasts: this machine, or a cluster."""
    if ray is None or depot is None:
        yield executor(workers, device)
        return
    with connected(ray, depot, count=workers, device=device) as cluster:
        yield cluster


def waiting(measurements: Sequence[Measurement], at: Workspace) -> list[Job]:
    """The jobs still to be run, in order: those without a result, and all whose result was damaged since.

    What only finished measurements stand on is not made again where it was deleted.
    """
    jobs = [m.job for m in measurements]
    damaged = [job for job in in_order(jobs) if job.damage(at)]
    return in_order([*damaged, *jobs], lambda job: job.result(at) is not None)


def run(
    plan: Plan,
    store: Path,
    out: Path,
    *,
    workers: int | None = 1,
    device: str = "cpu",
    changed: bool = False,
    ray: str | None = None,
    shared: str | None = None,
    watched: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing and write ``records.jsonl``, ``summary.jsonl`` and ``table.md``; returns the summary's rows.

    Killed at any moment and started again, it ends with the same numbers, bit for bit on the same machine with as many threads.
    Results of an earlier text stay with that text until this one's are whole.

    Args:
        plan: what to run.
        store: folder of finished jobs.
        out: folder of the results.
        workers: jobs at a time, each in a process of one thread; None for as many as there are cores; 1 for one after another
            in this process.
        device: where models are put; no part of a job's key.
        changed: accept that the plan's text is another than that of the results in ``out``.
        ray: a Ray cluster that runs the jobs, as `connected` takes it; ``workers`` are then jobs at a time at most.
        shared: URL of the store that the machines of the cluster share, of which ``store`` is then this machine's copy; they
            share ``store`` itself if not given.
        watched: write into ``out`` where it stands, and where its images are, for another process to look on.
        on_progress: told whenever a job begins or ends.

    Raises:
        ExpungeError: if another run is writing ``out``; or it belongs to another plan or to an earlier text of this one,
            unless ``changed``.
    """
    _check_workers(workers)
    at, depot = Workspace(store=store, device=device), shared_store(store, ray, shared)
    read = checked(plan)
    measurements = expanded(read, device)
    tell = [] if on_progress is None else [on_progress]
    with reserved(out, overwrite=True), _running(workers, device, ray, depot) as runs:
        if isinstance(depot, ObjectStore):
            depot.check()
            levelled([m.job for m in measurements], at, depot)
        same = _claim(plan, out, changed)
        if watched:
            write_sides(measurements, out)
            tell.append(Watched(out).at)
        todo = waiting(measurements, at)
        _tell_of_damage(todo, at)
        runs.run(todo, at, _Watch(todo, tell, runs.at_once, lambda: plan_pace(plan, read.image_dtype, at)))
        finished = gathered(measurements, at)
        if not same:
            summary.forget(out)
            _write_plan(plan, out)
        return summary.write(wanted(read), finished, out)


def _tell_of_damage(jobs: Sequence[Job], at: Workspace) -> None:
    """Warn of results that are made again, since somebody may want to know what became of them."""
    told = [why for why in (job.damage(at) for job in jobs) if why]
    if told:
        more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
        warnings.warn(f"{told[0]}{more}: made again", ExpungeWarning, stacklevel=3)


def again(plan: Plan, results: Path, out: Path) -> list[dict[str, Any]]:
    """Judge the claims of ``plan`` and draw its figures from the records and summary in ``results``, and run nothing.

    Raises:
        ExpungeError: if the file is no JSON Lines, has no summary or another plan's; or if ``out`` holds a run's results, or
            another run is writing it.
    """
    wants = wanted(checked(plan))
    with reserved(out, overwrite=True):
        return summary.write_again(wants, results, out)


def plan_pace(plan: Plan, image_dtype: str, at: Workspace) -> Pace:
    """How long a plan's jobs take here."""
    hashes = {model(plan.model, dtype, at.device).identity() for dtype in (plan.dtype, image_dtype)}
    return pace(lambda: model(plan.model, plan.dtype, at.device), hashes, at)


def _claim(plan: Plan, out: Path, changed: bool) -> bool:
    """Whether ``out`` has this plan's text already; else it is written there, where no results need another's."""
    file = out / PLAN
    try:
        same = file.is_file() and _same(plan, read_json(file))
    except ExpungeError as error:
        if not changed:
            raise ExpungeError(f"{error}, another --out, or --changed, which writes it anew") from error
        same = False
    if file.is_file() and not (same or changed):
        raise ExpungeError(
            f"'{out}' holds results of another text of this plan: expected the same text, another --out, or --changed "
            "(finished jobs that it still asks for are kept)"
        )
    if same or not (out / SUMMARY).is_file():
        _write_plan(plan, out)
    return same


def _write_plan(plan: Plan, out: Path) -> None:
    """Write down which plan the results in ``out`` belong to."""
    write_json(out / PLAN, {"format": FORMAT, **plan.source, "model": plan.model}, overwrite=True)


def _same(plan: Plan, kept: Mapping[str, Any]) -> bool:
    """Whether the plan that results were kept with says the same; files have their entries by name."""
    now = json.loads(json.dumps({**plan.source, "model": plan.model}, sort_keys=True))
    try:
        before = typed("plan", {name: value for name, value in kept.items() if name != "format"})
    except ExpungeError:
        return False
    return before == typed("plan", now)


@final
class _Watch:
    """Counts jobs as they begin and end, and tells what is left."""

    def __init__(
        self,
        todo: Sequence[Job],
        tell: Sequence[Callable[[Progress], None]],
        at_once: int,
        times: Callable[[], Pace],
    ) -> None:
        self._left = {job.key: job for job in todo}
        self._total, self._at_once = len(todo), at_once
        self._running: dict[str, Job] = {}
        self._tell, self._pace = tell, times() if tell else None
        if not todo:
            self._say()

    def started(self, job: Job) -> None:
        """A job begins."""
        self._running[job.key] = job
        self._say()

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        """A job is done."""
        del self._left[job.key], self._running[job.key]
        if self._pace is not None:
            self._pace.add(job, job.cost.equivalents, seconds_of(result))
        self._say()

    def _say(self) -> None:
        if self._pace is None:
            return
        seconds = [self._pace.seconds(job, job.cost.equivalents) for job in self._left.values()]
        left = max(max(seconds, default=0.0), sum(seconds) / self._at_once)
        done = self._total - len(self._left)
        running = tuple(self._running.values())
        for tell in self._tell:
            tell(Progress(done=done, total=self._total, running=running, seconds_left=left))
