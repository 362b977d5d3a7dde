"""What a run writes beside its results for whoever looks on, in another process: where it stands, and where its images are."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

from expunge.executors.progress import Progress
from expunge.jobs import GenerateJob, MeasureJob, Workspace, in_order
from expunge.jobs.workspace import IMAGES
from expunge.plans.expand import Measurement
from expunge.results.files import PROGRESS, SIDES
from expunge.store import FORMAT, write_json


@final
class Watched:
    """Writes `PROGRESS` whenever a job begins or ends, and `SIDES` once."""

    def __init__(self, out: Path, clock: Callable[[], float] = time.time) -> None:
        """Say in ``out`` that a run begins; ``clock`` gives seconds since 1970."""
        self._file, self._clock = out / PROGRESS, clock
        self._start = clock()
        self._begun: dict[str, float] = {}
        self._write({"done": 0, "total": None, "running": [], "seconds_left": None})

    def at(self, now: Progress) -> None:
        """A job begins or ends."""
        at = self._clock()
        self._begun = {job.key: self._begun.get(job.key, at) for job in now.running}
        running = [{"room": j.room, "what": j.describe(), "began": self._begun[j.key]} for j in now.running]
        self._write({"done": now.done, "total": now.total, "running": running, "seconds_left": now.seconds_left})

    def _write(self, content: dict[str, Any]) -> None:
        times = {"began": self._start, "at": self._clock()}
        write_json(self._file, {"format": FORMAT, **times, **content}, overwrite=True)


def write_sides(measurements: Sequence[Measurement], out: Path) -> None:
    """Write `SIDES`: a line for each folder of images that ``measurements`` are of, in their order."""
    sides: dict[tuple[str, ...], dict[str, Any]] = {}
    for measurement in measurements:
        images = next((job for job in in_order([measurement.job]) if _made(job, measurement)), None)
        if isinstance(images, GenerateJob) and isinstance(measurement.job, MeasureJob):
            side = {
                "method": measurement.method,
                "split": measurement.split,
                "seed": measurement.seed,
                "group": str(measurement.group),
                "run": measurement.run,
                "targets": list(measurement.job.targets),
                "folder": (images.folder(Workspace(store=Path())) / IMAGES).as_posix(),
            }
            sides.setdefault((measurement.method, measurement.split, side["group"], side["folder"]), side)
    write_json(out / SIDES, {"format": FORMAT, "sides": list(sides.values())}, overwrite=True)


def _made(job: Any, measurement: Measurement) -> bool:
    """Whether a job makes the images that a measurement is of."""
    return isinstance(measurement.job, MeasureJob) and job.key == measurement.job.images
