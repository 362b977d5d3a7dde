"""What Ray costs and brings: the overhead of a job, and jobs an hour of two workers against one, in one run.

`python benchmarks/cluster.py` writes benchmarks/cluster.json. It begins a cluster on this machine, and makes images by the
testbed in jobs of one thread. The overhead is the time of a run beyond what its jobs took, by one worker, each job after the
other; a serial run's stands beside it. Processes are warm before anything is timed. It wants two idle cores. (It cannot be
called `ray.py`: Python would import it in place of the package.)
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.executors.cluster import Cluster
from expunge.executors.connection import connected
from expunge.executors.executor import Executor
from expunge.executors.serial import Serial
from expunge.jobs import GenerateJob, Job, Workspace
from expunge.jobs.depots import SharedFolder
from expunge.jobs.workspace import model

ROOT = Path(__file__).parent.parent
TARGET = {"overhead_ms": 50.0, "two_against_one": 1.8}


class Seconds:
    """What jobs took, as they say themselves."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def started(self, job: Job) -> None:
        """A job begins."""

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        """A job is done."""
        self.all.append(result["seconds"])


def images(seed: int, count: int, steps: int) -> Job:
    """Images of the testbed."""
    return GenerateJob(
        version=1,
        prompts=[["image of a church", "church"]],
        count=count,
        seed=seed,
        guidance=4.0,
        steps=steps,
        part="test",
        edits=[],
        control=None,
        key_job=None,
        only=None,
        model="testbed",
        model_sha256=model("testbed", "float32").identity(),
        dtype="float32",
    )


def timed(runs: Executor, jobs: list[Job], store: Path) -> dict[str, float]:
    """Seconds of a run, its jobs an hour, and milliseconds a job beyond what jobs say they took."""
    watch, start = Seconds(), time.perf_counter()
    runs.run(jobs, Workspace(store=store), watch)
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2),
        "jobs": len(jobs),
        "jobs_an_hour": round(3600 * len(jobs) / seconds, 1),
        "overhead_ms": round(1000 * (seconds - sum(watch.all)) / len(jobs), 1),
    }


def measured(folder: Path, jobs: int, images_a_job: int, steps: int, repeats: int) -> dict[str, Any]:
    """All arms, taken in turn."""
    small = [images(seed, 1, 1) for seed in range(jobs)]
    large = [images(1000 + seed, images_a_job, steps) for seed in range(jobs)]
    found: dict[str, Any] = {name: [] for name in ("serial", "one_small", "one", "two")}
    with connected("local", SharedFolder(folder), count=2) as cluster:
        for number in range(repeats + 1):  # the first is not counted
            arms: dict[str, tuple[Executor, list[Job]]] = {
                "two": (Cluster(ray=cluster.ray, depot=_depot(folder, number, "two"), count=2), large),
                "one": (Cluster(ray=cluster.ray, depot=_depot(folder, number, "one"), count=1), large),
                "one_small": (Cluster(ray=cluster.ray, depot=_depot(folder, number, "one_small"), count=1), small),
                "serial": (Serial(), small),
            }
            for arm, (runs, work) in arms.items():
                run = timed(runs, work, folder / f"{number}-{arm}")
                if number:
                    found[arm].append(run)
                    print(json.dumps({"arm": arm, **run}), flush=True)
    best = {arm: max(run["jobs_an_hour"] for run in runs) for arm, runs in found.items()}
    return {
        "overhead_ms": min(run["overhead_ms"] for run in found["one_small"]),
        "overhead_ms_serial": min(run["overhead_ms"] for run in found["serial"]),
        "two_against_one": round(best["two"] / best["one"], 2),
        "runs": found,
    }


def _depot(folder: Path, number: int, arm: str) -> SharedFolder:
    return SharedFolder(folder / f"{number}-{arm}")


def main() -> None:
    """Measure, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--images", type=int, default=8, help="of a large job")
    parser.add_argument("--steps", type=int, default=20, help="of a large job")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "cluster.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measured(Path(name), given.jobs, given.images, given.steps, given.repeats)
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "load": os.getloadavg()[0]}
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    settings = {"jobs": given.jobs, "images": given.images, "steps": given.steps, "repeats": given.repeats}
    report = {"machine": machine, "now": commit.strip(), "target": TARGET, "settings": settings, **found}
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({name: report[name] for name in ("overhead_ms", "overhead_ms_serial", "two_against_one")}))


if __name__ == "__main__":
    main()
