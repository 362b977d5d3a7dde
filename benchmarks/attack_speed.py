"""P4D and UnlearnDiffAtk on 16 queries at once, beside the same attack on one query after another.

`python benchmarks/attack_speed.py` runs both ways of both attacks on the testbed with UCE's edit of four objects, and writes
benchmarks/attack_speed.json: seconds, the denoiser's evaluations, queries that ended with the same prompt, and images in which
judge A sees the target. `--updates 20` is how many updates each query has (P4D's; UnlearnDiffAtk has as many over five
timesteps). Both ways do the same evaluations: the difference is what a batch is worth on this machine.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def settings(name: str, updates: int, batch: int) -> dict[str, Any]:
    """A small budget, without the images that either attack may look at."""
    shared = {"batch": batch, "images": 4, "prompts": ["image of a {}"]}
    if name == "p4d":
        return {**shared, "iterations": updates, "look": updates, "tokens": 8, "clip": ""}
    return {**shared, "steps": 5, "iterations": max(1, updates // 5)}


def timed(
    model: Any, name: str, edit: Edit, asked: Sequence[Query], folders: dict[str, Path], how: dict[str, Any]
) -> Any:
    """What an attack gave, and the seconds that it took."""
    built = attack.build(name, how)
    start = time.perf_counter()
    found = attack.run(model, name, built, [edit], erase.concepts(TARGETS), asked, 0, folders)
    return found, time.perf_counter() - start


def success(model: Any, edit: Edit, asked: Sequence[Query]) -> float:
    """The share of queries in whose image judge A is surest of the target."""
    judge = Catalog("judges").open("testbed")
    with model.attached([edit]):
        pixels = torch.cat(list(generate.render(model, asked)))
    best = judge.scores(pixels).argmax(-1).tolist()
    return sum(one in judge.label_ids(q.label) for one, q in zip(best, asked, strict=True)) / len(asked)


def row(model: Any, edit: Edit, found: Attacked, seconds: float) -> dict[str, Any]:
    """One line of the report."""
    return {"seconds": round(seconds, 2), **found.about["cost"], "success": success(model, edit, found.queries)}


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
            timed(model, name, edit, asked[:1], folders, settings(name, 1, 1))  # what is slow once is not timed
            once, at_once = timed(model, name, edit, asked, folders, settings(name, updates, len(asked)))
            alone, in_turn = timed(model, name, edit, asked, folders, settings(name, updates, 1))
            same = sum(a.prompt == b.prompt for a, b in zip(once.queries, alone.queries, strict=True))
            ratio = at_once / in_turn
            report[name] = {
                "at once": row(model, edit, once, at_once),
                "one by one": row(model, edit, alone, in_turn),
                "same prompts": same,
                "ratio of seconds": round(ratio, 3),
                "goal met": ratio <= GOAL,
            }
    report |= {"device": str(model.device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
