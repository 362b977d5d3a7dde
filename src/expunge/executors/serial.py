"""One job after another, in this process."""

from collections.abc import Sequence
from typing import final

from expunge.executors.executor import Watcher
from expunge.jobs import Job, Workspace


@final
class Serial:
    """Runs jobs in the order given, with as many threads as torch has here."""

    at_once = 1

    def run(self, jobs: Sequence[Job], at: Workspace, watcher: Watcher) -> None:
        """Do ``jobs``; see `Executor`."""
        for job in jobs:
            watcher.started(job)
            watcher.finished(job, job.finish(at))
