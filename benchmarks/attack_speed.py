"""P4D and UnlearnDiffAtk on 16 queries at once, beside the same attack on one query after another.

`python benchmarks/attack_speed.py` runs both ways of both attacks on the testbed with UCE's edit of four objects, and writes
benchmarks/attack_speed.json: seconds by the clock and of the processor, the denoiser's evaluations, queries that ended with the
same prompt, and the share of images in which judge A sees the target. `--updates 20` is how many updates each query has (P4D's;
UnlearnDiffAtk has as many over five timesteps). Both ways do the same evaluations, so the difference is what a batch is worth
on this machine.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from expunge import Catalog, load
from expunge.core.edit import Edit
from expunge.core.query import Query, queries
from expunge.stages import attack, erase, generate
from expunge.stages.attack import Attacked

OUT = Path(__file__).with_suffix(".json")
TARGETS = ["castle", "guitar", "rose", "penguin"]
GOAL = 1 / 6
"""Of the loop's seconds."""


class Ran(NamedTuple):
    """An attack that was run."""

    found: Attacked
    seconds: float
    cpu_seconds: float


def settings(name: str, updates: int, batch: int) -> dict[str, Any]:
    """A small budget, without the images that either attack may look at."""
    shared = {"batch": batch, "images": 4, "prompts": ["image of a {}"]}
    if name == "p4d":
        return {**shared, "iterations": updates, "look": updates, "tokens": 8, "clip": ""}
    return {**shared, "steps": 5, "iterations": max(1, updates // 5)}


def ran(
    model: Any, name: str, edit: Edit, asked: Sequence[Query], folders: dict[str, Path], how: dict[str, Any]
) -> Ran:
    """Run an attack."""
    built, targets = attack.build(name, how), erase.concepts(sorted({q.label or "" for q in asked}))
    start, cpu = time.perf_counter(), time.process_time()
    found = attack.run(model, name, built, [edit], targets, asked, 0, folders)
    return Ran(found, time.perf_counter() - start, time.process_time() - cpu)


def success(model: Any, edit: Edit, asked: Sequence[Query]) -> float:
    """The share of queries in whose image judge A is surest of the target."""
    judge = Catalog("judges").open("testbed")
    with model.attached([edit]):
        pixels = torch.cat(list(generate.render(model, asked)))
    best = judge.scores(pixels).argmax(-1).tolist()
    return sum(one in judge.label_ids(q.label) for one, q in zip(best, asked, strict=True)) / len(asked)


def row(model: Any, edit: Edit, one: Ran) -> dict[str, Any]:
    """One line of the report."""
    times = {"seconds": round(one.seconds, 2), "cpu_seconds": round(one.cpu_seconds, 2)}
    return {**times, **one.found.about["cost"], "success": success(model, edit, one.found.queries)}


def main() -> None:
    """Run all of it in one process, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=20)
    updates = parser.parse_args().updates
    model = load("testbed")
    edit = erase.run(model, "uce", erase.build("uce", {}, "testbed"), erase.concepts(TARGETS), [])
    asked = queries([(f"image of a {target}", target) for target in TARGETS], 4, 0, 4.0, 8)
    report: dict[str, Any] = {"queries": len(asked), "updates": updates, "goal": round(GOAL, 3)}
    report["nobody attacks"] = {"success": success(model, edit, asked)}
    with tempfile.TemporaryDirectory() as home:
        folders = {}
        for target in TARGETS:  # once, so that no attack's seconds hold them
            wanted = queries([(f"image of a {target}", target)], 4, 900, 4.0, 8)
            folders[target] = generate.to_folder(model, [], wanted, Path(home) / target)
        for name in ("p4d", "unlearn-diff-atk"):
            ran(model, name, edit, asked[:1], folders, settings(name, 1, 1))  # what is slow once is not timed
            at_once = ran(model, name, edit, asked, folders, settings(name, updates, len(asked)))
            in_turn = ran(model, name, edit, asked, folders, settings(name, updates, 1))
            same = sum(a.prompt == b.prompt for a, b in zip(at_once.found.queries, in_turn.found.queries, strict=True))
            report[name] = {
                "at once": row(model, edit, at_once),
                "one by one": row(model, edit, in_turn),
                "same prompts": same,
                "ratio of seconds": round(at_once.seconds / in_turn.seconds, 3),
                "ratio of cpu_seconds": round(at_once.cpu_seconds / in_turn.cpu_seconds, 3),
                "goal met": at_once.seconds <= GOAL * in_turn.seconds,
            }
    report |= {"device": str(model.device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
