"""Jobs an hour: a slice of kpop-table2 by the build before workers and by this one, idle and beside a busy core.

`python benchmarks/workers.py` writes benchmarks/workers.json. It checks out the earlier build (`BASE`) into a temporary
folder, and starts and stops a loop that keeps one core busy. Each arm begins with an empty store, and ends with the slice or
after `--limit` seconds.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BASE = "841c1a0"
"""The last commit of the build before, which ran one job after another with torch's own threads."""
SLICE = """
about = "A slice of kpop-table2: its methods on one split and training seed, a few images a class."
set = "objects10"
count = 6
control_count = 2
others = { set = "everyday", count = 1 }
image_dtype = "float32"

[grid]
method = ["original", "esd", "uce", "kpop"]
split = ["v1"]

[method.esd]
eraser = "esd"

[method.uce]
eraser = "uce"

[method.kpop]
eraser = "kpop"
settings = { iterations = 40 }
controls = ["own", "random", "other"]
"""
BUSY = "while True: pass"


def main() -> None:
    """Run the arms and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds after which an arm is ended")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each arm, taken in turn")
    parser.add_argument("--arms", nargs="+", default=["idle", "busy"], choices=["idle", "busy"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "workers.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, _checked_out(Path(name) / "base") as base:
        plan = Path(name) / "slice.toml"
        plan.write_text(SLICE)
        builds = {"before": base, "now": ROOT}
        runs: list[dict[str, Any]] = []
        for arm in given.arms:
            for repeat in range(given.repeats):
                for build, root in builds.items():
                    with _busy_core() if arm == "busy" else contextlib.nullcontext():
                        run = _run(root, plan, Path(name) / f"{arm}-{build}-{repeat}", given.limit)
                    runs.append({"arm": arm, "build": build, **run})
                    print(json.dumps(runs[-1]), flush=True)
    report = {
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "before": BASE,
        "now": _git("rev-parse", "--short", "HEAD").strip(),
        "target": {"idle": 1.6, "busy": 5.0},
        "ratio": {arm: _ratio(runs, arm) for arm in given.arms},
        "runs": runs,
    }
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["ratio"]))


def _run(root: Path, plan: Path, folder: Path, limit: float) -> dict[str, Any]:
    """One arm: seconds, and finished jobs with their forward-equivalents an hour."""
    store = folder / "store"
    command = [sys.executable, "-m", "expunge", "bench", str(plan), "--store", str(store), "--out", str(folder / "out")]
    variables = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    variables |= {"PYTHONPATH": str(root / "src"), "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    with subprocess.Popen([*command, "--quiet"], env=variables, cwd=folder.parent, start_new_session=True) as process:
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
    seconds = time.monotonic() - start
    if code not in (0, None):
        raise SystemExit(f"bench of {root} ended with exit code {code}")
    done = [json.loads(file.read_text()) for file in store.glob("[!.]*/result.json")]
    equivalents = sum(d["cost"]["forward"] + 3 * d["cost"]["trained"] for d in done)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "seconds": round(seconds, 1),
        "finished": code == 0,
        "jobs": len(done),
        "jobs_an_hour": round(3600 * len(done) / seconds, 1),
        "equivalents_an_hour": round(3600 * equivalents / seconds),
    }


def _ratio(runs: list[dict[str, Any]], arm: str) -> float:
    """Jobs an hour by this build, in those of the build before; evaluations an hour where an arm was cut short."""
    mine = [run for run in runs if run["arm"] == arm]
    per_hour = "jobs_an_hour" if all(run["finished"] for run in mine) else "equivalents_an_hour"
    both = {b: statistics.median(run[per_hour] for run in mine if run["build"] == b) for b in ("before", "now")}
    return round(both["now"] / both["before"], 2) if both["before"] else float("inf")


@contextlib.contextmanager
def _checked_out(folder: Path) -> Iterator[Path]:
    """The earlier build in a folder of its own."""
    _git("worktree", "add", "--detach", "--quiet", str(folder), BASE)
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


@contextlib.contextmanager
def _busy_core() -> Iterator[None]:
    """Another program that keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", BUSY]) as loop:
        try:
            yield
        finally:
            loop.kill()


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
