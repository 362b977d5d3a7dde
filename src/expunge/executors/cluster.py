"""A cluster: jobs on all machines that Ray holds together, over a store that all of them reach.

A run claims a job before it gives it to the cluster, so no machine waits for what another run does. A machine fetches what a
job stands on, works in a folder of its own, and puts the job into the store whole. Ray carries a few words; files go through
the store. What a lost process or machine was doing is given out again.
"""

import contextlib
import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

from expunge.core.errors import ExpungeError, ExpungeWarning, reason
from expunge.executors import machines
from expunge.executors.answers import check
from expunge.executors.executor import Watcher
from expunge.executors.machines import Order
from expunge.executors.queue import Queue
from expunge.executors.workers import PROCESS_BYTES
from expunge.jobs import Job, Workspace
from expunge.jobs.depots import Depot
from expunge.store.leases import SECONDS, Leases

POLL = 1.0
"""Seconds until a job that another run has claimed is looked at again."""
LOOK = 5.0
"""Seconds until the cluster is asked again what it has."""
GOODBYE = 20.0
"""Seconds that jobs have to end in when the run is given up."""


class _Has(NamedTuple):
    """What the machines have that are there."""

    asked: float = -LOOK
    """When, by a clock that only goes forward."""
    jobs: int = 0
    """For how many processes there are cores."""
    gpus: int = 0
    largest: float = 0.0
    """Bytes of the machine with the most memory."""


@final
@dataclass(eq=False, kw_only=True)
class _Try:
    """A job that the cluster is doing."""

    job: Job
    name: str
    attempt: str
    guard: contextlib.ExitStack
    """What is let go when the job has ended."""
    lost: int = 0
    """How often it was lost before."""


@final
@dataclass(kw_only=True)
class Cluster:
    """Runs jobs on a cluster that this process is connected to (see `connected`), each in a process of one thread.

    The results are, bit for bit, those of `Serial` with one thread where machines are of one kind. Two runs that have a depot
    in common share the work.
    """

    ray: Any
    """The package, connected."""
    depot: Depot
    count: int | None = None
    """Jobs at a time, at most; None for as many as the cluster has cores for."""
    device: str = "cpu"
    threads: int = 1
    """Of each process."""
    retries: int = 3
    """How often a job is given out again after what did it was lost."""
    lease: float = SECONDS
    """Seconds after which other runs may take over what this one claimed, when it is not heard of."""
    _has: _Has = field(default_factory=_Has, repr=False)

    @property
    def at_once(self) -> int:
        """As many as the machines that are there now can do; one, which waits, while there is none."""
        return max(1, self._looked().jobs)

    def lacks(self) -> str:
        """What jobs need that no machine has; nothing if there is all of it."""
        has = self._looked()
        return "cores" if not has.jobs else "GPUs" if self.device != "cpu" and not has.gpus else ""

    def run(self, jobs: Sequence[Job], at: Workspace, watcher: Watcher) -> None:
        """Do ``jobs``; see `Executor`.

        Raises:
            ExpungeError: also if a job is lost more often than it is given out again.
        """
        running: dict[Any, _Try] = {}
        with self.depot.leases(self.lease) as leases:
            try:
                self._work(Queue(jobs), at, watcher, leases, running)
            finally:
                self._give_up(running)

    def _work(self, queue: Queue, at: Workspace, watcher: Watcher, leases: Leases, running: dict[Any, _Try]) -> None:
        elsewhere: dict[str, float] = {}
        """When to look again at jobs that other runs have claimed."""
        while queue.left:
            for job in queue.ready():
                if len(running) >= self.at_once:
                    break
                on_gpus = sum(self._on_gpu(given.job) for given in running.values())
                if self._on_gpu(job) and on_gpus >= max(1, self._looked().gpus):
                    continue
                if elsewhere.get(job.key, 0.0) > time.monotonic():
                    continue
                guard = self._claimed(job, at, leases)
                if guard is None:
                    elsewhere[job.key] = time.monotonic() + POLL
                    continue
                elsewhere.pop(job.key, None)
                if self.depot.has(job.folder(at).name):  # by another run, meanwhile
                    watcher.started(job)
                    guard.close()
                    self._ended(job, at, leases, queue, watcher)
                else:
                    self.depot.clear(job.folder(at).name)
                    queue.begin(job)
                    given = _Try(job=job, name=job.folder(at).name, attempt=secrets.token_hex(8), guard=guard)
                    running[self._submit(given)] = given
                    watcher.started(job)
            for ref in self._answering(running, bool(elsewhere)):
                given = running[ref]
                answer = self._answer(ref, given)
                del running[ref]
                if answer is None:
                    running[self._submit(given)] = given
                    continue
                with given.guard:
                    check(given.job, answer)
                    self._ended(given.job, at, leases, queue, watcher, answer)

    # jobs -------------------------------------------------------------------------------------------------------------
    def _claimed(self, job: Job, at: Workspace, leases: Leases) -> contextlib.ExitStack | None:
        """What keeps other runs from a job until it is closed; None if another has it."""
        name = job.folder(at).name
        with contextlib.ExitStack() as guard:
            if guard.enter_context(self.depot.guarded(name)) and leases.take(name):
                return guard.pop_all()
        return None

    def _on_gpu(self, job: Job) -> bool:
        """Whether a job needs a GPU: one that opens no model does not, where the others have one."""
        return self.device != "cpu" and job.opens_model

    def _submit(self, given: _Try) -> Any:
        """Give a job to the cluster; returns what stands for its answer."""
        job = given.job
        # what is larger has a machine for itself
        memory = min(PROCESS_BYTES + job.memory, 0.95 * self._looked().largest)
        gpus = {"num_gpus": 1} if self._on_gpu(job) else {}
        task = self.ray.remote(machines.done).options(
            name=f"{job.room} {job.key[:8]}", num_cpus=self.threads, memory=int(memory), max_retries=0, **gpus
        )
        order = Order(
            content=job.as_json(),
            name=given.name,
            upstream=[up.folder(Workspace(store=Path())).name for up in job.upstream],
            attempt=given.attempt,
            depot=self.depot,
            device=self.device,
            threads=self.threads,
        )
        return task.remote(order)

    def _answering(self, running: Mapping[Any, _Try], elsewhere: bool) -> list[Any]:
        """Wait for answers, as long as nothing else is to be looked at."""
        if not running:
            time.sleep(POLL if elsewhere else 0.0)
            return []
        ended, _ = self.ray.wait(list(running), num_returns=1, timeout=POLL if elsewhere else LOOK)
        return ended

    def _answer(self, ref: Any, given: _Try) -> dict[str, Any] | None:
        """What came of a job; None if it was lost, and is to be given out again.

        Raises:
            ExpungeError: if it was lost too often, or a machine lacks what jobs need.
        """
        errors = self.ray.exceptions
        try:
            return self.ray.get(ref)
        except errors.RayTaskError as error:  # what a job raises is in its answer, so it did not get that far
            last = str(error).strip().split("\n")[-1]
            raise ExpungeError(
                f"a machine of the cluster cannot do jobs ({last}): expected expunge there, too"
            ) from error
        except errors.RayError as error:
            self.depot.discard(given.name, given.attempt)
            given.lost += 1
            given.attempt = secrets.token_hex(8)
            what = f"job {given.job.key[:8]} ({given.job.room}: {given.job.describe()})"
            why = f"{type(error).__name__}: {reason(error).split('. ')[0].rstrip('.')}"
            if given.lost > self.retries:
                raise ExpungeError(
                    f"{what} was lost {given.lost} times, at last so ({why}): expected machines that stay, or more memory"
                ) from error
            warnings.warn(f"{what} was lost ({why}): begun again", ExpungeWarning, stacklevel=2)
            return None

    def _ended(
        self,
        job: Job,
        at: Workspace,
        leases: Leases,
        queue: Queue,
        watcher: Watcher,
        answer: Mapping[str, Any] | None = None,
    ) -> None:
        """A job is in the depot."""
        name = job.folder(at).name
        leases.end(name)
        self.depot.fetch(name, at.store)
        queue.end(job)
        watcher.finished(job, answer or job.result(at) or {"seconds": 0.0})

    def _give_up(self, running: dict[Any, _Try]) -> None:
        """End what is being done, and delete what that leaves; nothing is left to be done where the run ended well."""
        for ref in running:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self.ray.cancel(ref, force=True)
        if running:
            with contextlib.suppress(Exception):
                self.ray.wait(list(running), num_returns=len(running), timeout=GOODBYE)
        with contextlib.suppress(ExpungeError):  # the depot may be gone, too: what was put there goes with the next try
            for given in running.values():
                self.depot.discard(given.name, given.attempt)
        for given in running.values():
            given.guard.close()

    def _looked(self) -> _Has:
        """What the cluster has; machines may come and go."""
        if time.monotonic() - self._has.asked >= LOOK:
            there = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            cores, gpus = (int(sum(has.get(what, 0) for has in there)) for what in ("CPU", "GPU"))
            jobs = cores // self.threads
            limit = jobs if self.count is None else min(jobs, self.count)
            self._has = _Has(time.monotonic(), limit, gpus, max((has.get("memory", 0.0) for has in there), default=0.0))
        return self._has
