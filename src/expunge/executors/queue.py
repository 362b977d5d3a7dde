"""Jobs still to be done, and which of them can be."""

from collections.abc import Sequence
from typing import final

from expunge.jobs import Job


@final
class Queue:
    """Jobs still to be done, and which of them can be."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = {job.key: job for job in jobs}
        self._begun: set[str] = set()
        self._weight = _weights(jobs)

    @property
    def left(self) -> bool:
        """Whether some are not done."""
        return bool(self._jobs)

    def ready(self) -> list[Job]:
        """Those that stand on nothing undone, what the longest work waits for first."""
        able = [
            job
            for job in self._jobs.values()
            if job.key not in self._begun and not any(up.key in self._jobs for up in job.upstream)
        ]
        return sorted(able, key=lambda job: -self._weight[job.key])

    def begin(self, job: Job) -> None:
        """A worker has it."""
        self._begun.add(job.key)

    def end(self, job: Job) -> None:
        """It is done."""
        del self._jobs[job.key]


def _weights(jobs: Sequence[Job]) -> dict[str, int]:
    """Evaluations on the longest way from each job to the last that waits for it, and one for each job on it."""
    weight = {job.key: 0 for job in jobs}
    for job in reversed(jobs):  # what waits for a job comes after it
        weight[job.key] += 1 + job.cost.equivalents
        for up in job.upstream:
            if up.key in weight:
                weight[up.key] = max(weight[up.key], weight[job.key])
    return weight
