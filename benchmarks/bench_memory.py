"""How much memory a bench takes with all its workers, at most: 3 GB with two workers is the goal.

    python benchmarks/bench_memory.py benchmarks/kpop-table5.toml [more plans] [--workers 2] [-- more words for the bench]

It runs each plan as `expunge bench PLAN --workers N` and reads Linux's counts every two seconds: what the processes have of the
memory for themselves, and their parts of what they share (the proportional set size). Peaks between two looks are not seen. The
most of each plan goes to `bench_memory.json`, by workers, beside how many looks there were. A run of fewer than a hundred, as
one is that finds its results in the store, tells nothing and changes nothing there.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

RESULT = Path(__file__).with_suffix(".json")
EVERY = 2.0
"""Seconds from one look to the next."""
KIB = 1024
GOAL = 3e9
"""Bytes, with two workers."""
ENOUGH = 100
"""Looks of a run that tells something."""


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it ended
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def share(process: int) -> int:
    """Its proportional set size, in bytes; 0 when it has ended."""
    try:
        counts = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", counts, re.MULTILINE)
    return int(found[1]) * KIB if found else 0


def measured(plan: Path, workers: int, words: list[str]) -> dict[str, int]:
    """Run a plan; the most that its processes had together, the most of one, and the looks.

    Raises:
        SystemExit: with the bench's code, if it failed.
    """
    bench = subprocess.Popen([sys.executable, "-m", "expunge", "bench", str(plan), "--workers", str(workers), *words])
    most = largest = looks = 0
    try:
        while bench.poll() is None:
            shares = [share(process) for process in tree(bench.pid)]
            most, largest, looks = max(most, sum(shares)), max(largest, *shares), looks + 1
            time.sleep(EVERY)
    finally:
        bench.terminate()
    if bench.returncode:
        raise SystemExit(bench.returncode)
    return {"peak_bytes": most, "largest_process_bytes": largest, "looks": looks}


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    asked = parser.parse_args(own)
    for plan in asked.plans:
        result = measured(plan, asked.workers, more)
        said = f"{plan.stem}: {result['peak_bytes'] / 1e9:.2f} GB with {asked.workers} workers"
        print(f"{said}; the goal is {GOAL / 1e9:g}" if asked.workers == 2 else said)
        if result["looks"] >= ENOUGH:
            known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            known.setdefault(plan.stem, {})[f"{asked.workers} workers"] = result
            RESULT.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
