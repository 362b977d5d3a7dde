"""How long commands take to begin: this build beside the one before the command line was rebuilt, in turns.

    python benchmarks/startup.py [--rounds 5] [--quick]

The build before is a worktree of a commit in a temporary folder, with this environment's packages. Wall time, and the CPU time
of the process, which a busy machine lengthens less; medians over the rounds, and their ratios. ``--quick`` leaves out the
erasure from a checkpoint of Stable Diffusion 1.4's size.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from uce_size import checkpoint

ROOT = Path(__file__).parent.parent
BEFORE = "aef2a69"
RESULT = Path(__file__).with_suffix(".json")
HALF, FIFTH = 0.5, 0.2


class Timed(NamedTuple):
    """A command that is timed, and how much of its earlier time it may take."""

    name: str
    words: list[str]
    target: float


def commands(here: Path, large: Path | None) -> list[Timed]:
    """What is timed; images and edits go to ``here``."""
    edit = here / "edit" / "edit.safetensors"
    new = ["--overwrite", "--quiet", "--out"]
    timed = [
        Timed("generate, testbed", ["generate", "--concept", "church", "--count", "1", *new, str(here / "o")], HALF),
        Timed(
            "erase uce, testbed", ["erase", "uce", "--target", "church", "--no-check", *new, str(here / "edit")], HALF
        ),
        Timed("show", ["show", str(edit)], FIFTH),
        Timed("list", ["list"], FIFTH),
        Timed("list --families", ["list", "--families"], FIFTH),
        Timed("--help", ["--help"], FIFTH),
        *(Timed(f"{name} --help", [name, "--help"], FIFTH) for name in ("bench", "generate", "report", "clean")),
        Timed("erase kpop --help", ["erase", "kpop", "--help"], FIFTH),
    ]
    if large is not None:
        asked = ["erase", "uce", "--no-preset", "--target", "church", "--model", str(large)]
        timed.insert(2, Timed("erase uce, SD 1.4's size", [*asked, *new, str(here / "large")], HALF))
    return timed


def run(build: Path, words: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command of a build."""
    environment = {**os.environ, "PYTHONPATH": str(build / "src"), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "expunge", *words]
    subprocess.run(command, env=environment, cwd=build, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compared(timed: Timed, builds: dict[str, Path], rounds: int) -> dict[str, object]:
    """A command's row: builds in turns, after a first run of each that is not counted."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in builds}
    for turn in range(rounds + 1):
        for name, build in builds.items():
            seconds = run(build, timed.words)
            if turn:
                taken[name].append(seconds)
    row: dict[str, object] = {"command": timed.name, "target": timed.target}
    for place, unit in enumerate(("wall", "cpu")):
        middle = {name: median(t[place] for t in times) for name, times in taken.items()}
        row |= {f"{unit}_{name}": round(seconds, 3) for name, seconds in middle.items()}
        row[f"{unit}_ratio"] = round(middle["now"] / middle["before"], 3)
    return row


def main() -> None:
    """Time all commands, and write the figures."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--quick", action="store_true")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        here, before = Path(temporary), Path(temporary) / "before"
        subprocess.run(
            ["git", "worktree", "add", "--detach", before, BEFORE], cwd=ROOT, check=True, capture_output=True
        )
        try:
            large = None if given.quick else here / "sd"
            if large is not None:
                checkpoint(large)
            builds = {"before": before, "now": ROOT}
            rows = [compared(timed, builds, given.rounds) for timed in commands(here, large)]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True, capture_output=True)
    for row in rows:
        print(json.dumps(row))
    content = {"format": 1, "before": BEFORE, "rounds": given.rounds, "load": os.getloadavg()[0], "rows": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
