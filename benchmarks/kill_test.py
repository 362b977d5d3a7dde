"""Kill `expunge generate` at random moments, run two at a time, and count what is lost: nothing may be.

A run is resumed until it ends; its folder must then be that of a run that nobody killed, byte for byte. Half of the rounds
have a second run to the same folder, which must be refused, or find the folder taken, in one line.

    python benchmarks/kill_test.py --kills 50
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGES = 24


def command(out: Path, *more: str) -> list[str]:
    """The command that makes the images."""
    words = [
        "generate",
        "--concept",
        "church",
        "--count",
        str(IMAGES),
        "--batch",
        "2",
        "--steps",
        "8",
        "--out",
        str(out),
    ]
    return [sys.executable, "-m", "expunge.cli", *words, "--quiet", *more]


def pixels(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def ended(run: subprocess.Popen, may: set[int]) -> int:
    """The exit code of a run, which may be one of ``may``; one line is all it says of a failure."""
    _, told = run.communicate()
    ours = [line for line in told.splitlines() if line.startswith("expunge:")]
    few = {0: (0,), 2: (1,), 143: (1,)}.get(run.returncode, (0, 1))  # who is killed may have said why it was ending
    if run.returncode not in may or len(ours) not in few or "Traceback" in told:
        raise SystemExit(f"exit {run.returncode}: {told}")
    return run.returncode


def start(out: Path, *more: str) -> subprocess.Popen:
    """A run, not waited for."""
    return subprocess.Popen(command(out, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def main() -> None:
    """Kill, resume, compare."""
    given = argparse.ArgumentParser()
    given.add_argument("--kills", type=int, default=50)
    given.add_argument("--seed", type=int, default=0)
    options = given.parse_args()
    draw = random.Random(options.seed)
    found = {"kills": 0, "folders": 0, "refused_while_another_wrote": 0, "resumed_with_images": 0, "lost": 0}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        begun = time.monotonic()
        subprocess.run(command(place / "whole"), check=True)
        lasted, whole = time.monotonic() - begun, pixels(place / "whole")
        (place / ".mine.partial.txt").write_text("a user's own")
        while found["kills"] < options.kills:
            out = place / f"out{found['folders']}"
            while not out.exists():
                found["resumed_with_images"] += (place / f".{out.name}.partial" / ".resume.json").exists()
                run, begun = start(out, "--resume"), time.monotonic()
                other = start(out, "--resume") if draw.random() < 0.5 else None
                moment = draw.uniform(0, 1.1) * lasted
                if draw.random() < 0.7:  # most of a run is its start: look for the part that writes
                    while run.poll() is None and not (place / f".{out.name}.partial" / ".resume.json").exists():
                        time.sleep(0.01)
                    moment = draw.uniform(0, 0.5)
                try:
                    run.wait(moment)
                    lasted = min(lasted, time.monotonic() - begun)
                except subprocess.TimeoutExpired:
                    run.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
                    found["kills"] += 1
                ended(run, {0, 2, 143, -signal.SIGTERM, -signal.SIGKILL})  # before it has begun, a signal just ends it
                if other is not None:
                    found["refused_while_another_wrote"] += ended(other, {0, 2}) == 2
            found["folders"] += 1
            found["lost"] += pixels(out) != whole
            print(f"{found['kills']} kills: {out.name} {'differs' if found['lost'] else 'as it should be'}", flush=True)
        left = sorted(p.name for p in place.iterdir() if p.name.startswith("."))
        found["left_over"] = [n for n in left if n != ".mine.partial.txt"]
        found["lost"] += ".mine.partial.txt" not in left
    print(json.dumps(found))
    if found["lost"] or found["left_over"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
