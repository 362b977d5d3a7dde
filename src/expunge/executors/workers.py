"""Several jobs at a time, in processes of one thread each.

Two threads of one process wait for each other at every step of a small model, and wait long where another program keeps a core
busy. Processes wait for nobody: each takes a job whose upstream jobs are done.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, final

from expunge.core.errors import ExpungeError
from expunge.executors.answers import answer, check
from expunge.executors.executor import Watcher
from expunge.executors.machine import available_memory
from expunge.executors.queue import Queue
from expunge.jobs import ROOMS, Job, Workspace

PROCESS_BYTES = 1_200_000_000
"""What a worker takes before it opens a model: Python with torch, diffusers and transformers, and judges."""
PRELOADED = "expunge.executors.preloaded"
"""What is imported once for all workers."""
RESERVE = 0.9
"""The part of the memory that is free at the start which workers may take together."""


@final
@dataclass(eq=False, kw_only=True)
class _Worker:
    """A process, and the job that it does."""

    process: Any
    connection: Connection
    job: Job | None = None
    memory: int = PROCESS_BYTES
    """Bytes that it may have come to take: models stay loaded from one job to the next."""

    def after(self, job: Job) -> int:
        """Bytes that it may take with ``job``."""
        return max(self.memory, PROCESS_BYTES + job.memory)

    def stop(self) -> None:
        """End it at once; a job that it does leaves nothing that counts."""
        self.process.kill()
        self.process.join()
        self.connection.close()


@final
@dataclass(frozen=True, kw_only=True)
class Workers:
    """Runs up to ``count`` jobs at a time, as many as memory allows, each in a process of one thread.

    Jobs that many others wait for come first. The results are, bit for bit, those of `Serial` with one thread.
    """

    count: int
    threads: int = 1
    """Of each process."""
    memory: int = field(default_factory=available_memory)
    """Bytes that all may take together; a job that needs more runs alone."""

    @property
    def at_once(self) -> int:
        """As many as there may be workers."""
        return self.count

    def run(self, jobs: Sequence[Job], at: Workspace, watcher: Watcher) -> None:
        """Do ``jobs``; see `Executor`.

        Raises:
            ExpungeError: also if a worker dies, as it does where memory runs out.
        """
        with self._workers() as workers:
            self._work(Queue(jobs), at, watcher, workers)

    @contextlib.contextmanager
    def _workers(self) -> Iterator[list[_Worker]]:
        """The workers, which are gone afterwards, whatever happened."""
        workers: list[_Worker] = []
        try:
            yield workers
        finally:
            for worker in workers:
                worker.stop()

    def _work(self, queue: Queue, at: Workspace, watcher: Watcher, workers: list[_Worker]) -> None:
        while queue.left:
            for job in queue.ready():
                worker = self._free(job, workers, at)
                if worker is None:
                    break  # in turn: what is first may need the memory of all
                queue.begin(job)
                worker.job, worker.memory = job, worker.after(job)
                _give(worker, job)
                watcher.started(job)
            for worker in _answering(workers):
                job, result = _answer(worker)
                queue.end(job)
                watcher.finished(job, result)

    def _free(self, job: Job, workers: list[_Worker], at: Workspace) -> _Worker | None:
        """A worker for ``job``, begun if need be; None while it has to wait for one, or for memory."""
        idle = [w for w in workers if w.job is None]
        busy = [w for w in workers if w.job is not None]
        if len(busy) == self.count:
            return None
        limit = self.memory * RESERVE
        while (
            idle and sum(w.memory for w in workers) - idle[0].memory + idle[0].after(job) > limit and len(workers) > 1
        ):
            idle[-1].stop()  # its models are in the way
            workers.remove(idle.pop())
        if idle:
            fits = sum(w.memory for w in workers if w is not idle[0]) + idle[0].after(job) <= limit
            return idle[0] if fits or not busy else None
        if busy and sum(w.memory for w in busy) + PROCESS_BYTES + job.memory > limit:
            return None
        workers.append(_begin(at, self.threads))
        return workers[-1]


# a worker's end ------------------------------------------------------------------------------------------------------
def _begin(at: Workspace, threads: int) -> _Worker:
    """Start a worker.

    From a server that has imported what jobs need, where the system can fork; it has no thread when it forks.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([PRELOADED])
    ours, theirs = context.Pipe()
    variables = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(variables, str(threads)))  # which torch reads when it is imported
    try:
        process = context.Process(target=_serve, args=(theirs, at, threads), daemon=True)
        process.start()
    finally:
        for name, value in variables.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    theirs.close()
    return _Worker(process=process, connection=ours)


def _serve(connection: Connection, at: Workspace, threads: int) -> None:
    """Do jobs as they come, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            content = connection.recv()
        except EOFError:
            return
        connection.send(answer(_did, content, at))


def _did(content: Mapping[str, Any], at: Workspace) -> dict[str, Any]:
    return ROOMS[content["room"]].from_json(content).finish(at)


def _end_with_parent() -> None:
    """Leave in the middle of a job when the parent is gone: another run may want the store."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# the parent's end ----------------------------------------------------------------------------------------------------
def _answering(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait until one or more workers have something to say, or have died."""
    busy = {worker.connection: worker for worker in workers if worker.job is not None}
    return [busy[ready] for ready in wait(list(busy)) if isinstance(ready, Connection)]


def _give(worker: _Worker, job: Job) -> None:
    """Hand a job to a worker.

    Raises:
        ExpungeError: if it died while it had nothing to do.
    """
    try:
        worker.connection.send(job.as_json())
    except OSError as error:
        raise _died(worker, job) from error


def _died(worker: _Worker, job: Job) -> ExpungeError:
    """The error for a worker that is gone, at or before a job."""
    worker.process.join()
    code = worker.process.exitcode
    why = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    wanted = "enough memory for all workers, or fewer --workers" if code == -signal.SIGKILL else "it to go on"
    return ExpungeError(f"a worker ended {why} at job {job.key[:8]} ({job.room}: {job.describe()}): expected {wanted}")


def _answer(worker: _Worker) -> tuple[Job, dict[str, Any]]:
    """The job that a worker has done, and its result.

    Raises:
        ExpungeError: if the job failed, or the worker died.
    """
    job = worker.job
    if job is None:
        raise RuntimeError("a worker without a job answered")
    try:
        given = worker.connection.recv()
    except (EOFError, OSError) as error:
        raise _died(worker, job) from error
    check(job, given)
    worker.job = None
    return job, given
