"""Kill `expunge bench --workers 2` at random moments, its parent or one of its workers: the numbers must not change.

A plan is killed and started again until it ends; its records, images and edits must then be those of a run that nobody killed.
Where it ended, the next one begins from nothing, until there were as many kills as asked for. Killed itself, this goes on where
it was. At the end it prints a line, and adds it to `benchmarks/kill_test.jsonl`.

    python benchmarks/kill_bench.py --kills 30
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PLAN = """
about = "A small plan, to be killed."
set = "{here}/three.toml"
count = 2
control_count = 1
steps = 8
grid = {{ method = ["original", "uce", "kpop"], split = ["a"], seed = [0, 1] }}
analyses = [{{ name = "closeness", count = 1, objects = ["radio", "cat", "fish", "car"] }}]

[method.uce]
eraser = "uce"
retain = true

[method.kpop]
eraser = "kpop"
controls = ["own"]
preset = false
settings = {{ iterations = 6, lr = 1e-3, prompt_lr = 0.1, sampling = {{ sampling_steps = 4 }} }}
"""
SET = """
about = "Three objects."
concepts = ["church", "dog", "radio"]
splits = { a = ["church", "dog"] }
dev = { seed = 1, prompts = { church = ["a church"], dog = ["a dog"], radio = ["a radio"] } }
test = { seed = 9, prompts = { church = ["image of a church"], dog = ["image of a dog"], radio = ["image of a radio"] } }
"""


class Bench:
    """The command on one store."""

    def __init__(self, plan: Path, name: str) -> None:
        self.store, self.out = plan.parent / name / "store", plan.parent / name / "out"
        self.words = [
            "bench",
            str(plan),
            "--workers",
            "2",
            "--store",
            str(self.store),
            "--out",
            str(self.out),
            "--quiet",
        ]

    def start(self) -> subprocess.Popen[str]:
        """Begin it, not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", "expunge.cli", *self.words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def writes(self) -> bool:
        """Whether a job is being done."""
        return self.store.is_dir() and any(self.store.glob(".*.partial"))

    def made(self) -> dict[str, Any]:
        """Its records without times, and the bytes of its images and edits."""
        lines = [json.loads(line) for line in (self.out / "records.jsonl").read_text().splitlines()]
        for record in lines:
            for by in record["provenance"]["made_by"]:
                del by["seconds"]
        files = sorted([*self.store.rglob("*.png"), *self.store.rglob("edit.safetensors")])
        return {"records": lines, "files": {str(f.relative_to(self.store)): _content(f) for f in files}}


def _content(file: Path) -> bytes:
    """What a file holds; of an edit its tensors, since its header tells how long it took."""
    data = file.read_bytes()
    return data if file.suffix == ".png" else data[8 + int.from_bytes(data[:8], "little") :]


def descendants(pid: int) -> list[int]:
    """Processes that a process began, and those that these began; the last are workers."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def workers(pid: int) -> list[int]:
    """A run's workers: what the server that it began has forked."""
    return [far for near in descendants(pid) for far in descendants(near)]


def gone(pids: list[int], seconds: float = 200.0) -> bool:
    """Whether processes end in time, once their parent is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_one(pid: int) -> bool:
    """Kill a process; whether it was still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def killed(bench: Bench, draw: random.Random, lasts: float) -> str:
    """Run it, and kill it at a random moment; says what was killed, or that it ended before.

    Raises:
        SystemExit: if it ends otherwise than it may, or leaves processes behind.
    """
    run, begun = bench.start(), time.monotonic()
    moment = draw.uniform(0, 1.1) * lasts
    if draw.random() < 0.7:  # most of a run is its start: look for the part that writes
        while run.poll() is None and not bench.writes() and time.monotonic() - begun < 5 * lasts:
            time.sleep(0.01)
        moment = draw.uniform(0, 0.7) * lasts
    what = draw.choice(["parent", "worker"])
    try:
        run.wait(moment)
        what = "nothing"
    except subprocess.TimeoutExpired:
        below, some = descendants(run.pid), workers(run.pid)
        what = what if some else "parent"
        if not kill_one(run.pid if what == "parent" else draw.choice(some)):
            what = "nothing"
        if what == "parent" and not gone(below):
            raise SystemExit(f"{below} outlive their parent") from None
    _, told = run.communicate()
    may = {"parent": {-signal.SIGKILL, 0}, "worker": {0, 2}, "nothing": {0}}[what]  # 0: it had ended by then
    lines = told.strip().splitlines()
    if run.returncode not in may or "Traceback" in told or (run.returncode == 2 and len(lines) != 1):
        raise SystemExit(f"{what} killed, exit {run.returncode}: {told}")
    return "nothing" if run.returncode == 0 else what


def kill(plan: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill, start again, compare; how often, and how many runs differed. What was counted lies beside the plan."""
    state = plan.parent / "state.json"
    whole, torn = Bench(plan, "whole"), Bench(plan, "torn")
    if state.exists():
        found = json.loads(state.read_text())
    else:
        begun = time.monotonic()
        if whole.start().wait():
            raise SystemExit("the run that nobody kills fails")
        found: dict[str, Any] = {
            "what": "kill_bench",
            "bench_kills": 0,
            "of_parent": 0,
            "of_worker": 0,
            "tries": 0,
            "runs": 0,
            "differ": 0,
            "left_over": 0,
        }
        found["seconds"] = round(time.monotonic() - begun, 1)
        state.write_text(json.dumps(found))
    expected = whole.made()
    while True:
        last = found["bench_kills"] >= kills
        draw = random.Random(f"{seed} {found['tries']}")
        if last and torn.start().wait():
            raise SystemExit("the run that nobody kills any more fails")
        what = "nothing" if last else killed(torn, draw, found["seconds"])
        found["tries"] += 1
        if what != "nothing":
            found["bench_kills"] += 1
            found[f"of_{what}"] += 1
        else:
            found["runs"] += 1
            found["differ"] += torn.made() != expected
            found["left_over"] += len(list(torn.store.glob(".*")))
            shutil.rmtree(torn.store.parent)
        print(f"{found['bench_kills']} kills, the last of {what}", flush=True)
        state.write_text(json.dumps(found))
        if last and what == "nothing":
            return found


def main() -> None:
    """Kill as often as told."""
    given = argparse.ArgumentParser()
    given.add_argument("--kills", type=int, default=30)
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--folder", type=Path, default=Path("runs/kill-bench"))
    options = given.parse_args()
    here = options.folder.resolve()
    here.mkdir(parents=True, exist_ok=True)
    (here / "three.toml").write_text(SET)
    plan = here / "plan.toml"
    plan.write_text(PLAN.format(here=here))
    found = kill(plan, options.kills, options.seed)
    line = json.dumps(found)
    print(line)
    if found["differ"] or found["left_over"]:
        raise SystemExit(1)
    with (Path(__file__).parent / "kill_test.jsonl").open("a") as lines:
        lines.write(line + "\n")
    shutil.rmtree(here)


if __name__ == "__main__":
    main()
