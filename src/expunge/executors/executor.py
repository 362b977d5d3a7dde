"""What an executor promises, and what it tells while it works."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from expunge.jobs import Job, Workspace


@runtime_checkable
class Watcher(Protocol):
    """Is told what jobs begin and end."""

    def started(self, job: Job) -> None:
        """A job begins."""

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        """A job is done; its ``result`` has at least ``seconds``."""


@runtime_checkable
class Executor(Protocol):
    """Runs jobs, each after those it stands on, into one store; what it uses of the machine is no part of a job's key."""

    @property
    def at_once(self) -> int:
        """Jobs that it does at a time, at most."""
        ...

    def run(self, jobs: Sequence[Job], at: Workspace, watcher: Watcher) -> None:
        """Do ``jobs``, given in an order that can be run.

        Raises:
            ExpungeError: from the first job that fails; the others that were begun are given up, and lost is only their work.
        """
