"""The smallest difference under attack that a plan can see: `python benchmarks/tells_apart.py` writes tells_apart.json.

Two rows that do not differ, attacked with success in so many percent of images (``--shown``), are drawn again and again,
and compared as a plan's table compares them. Half the usual interval is what two rows must differ by to be told apart.
Images of a prompt are alike (``--alike`` is their correlation: 0 not at all, 1 all or nothing). Training seeds are not
taken to differ; if they do, less is seen. A pilot tells both.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from expunge.results.differences import differences, saturations
from expunge.results.finished import Finished, Value
from expunge.results.group import Group

ATTACK = Group(kind="attack", name="p4d")
"""One that searches for each prompt alone."""


def row(method: str, group: Group, shown: torch.Tensor) -> list[Finished]:
    """A row of a table whose images show the target or not, ``[training seeds, prompts, images]``."""
    record = {"metric": "dsr"}
    return [
        Finished(
            method=method,
            split="",
            seed=seed,
            group=group,
            images=f"{method} {group} {seed}",
            records=[record],
            values=[[Value("weapon", 1.0 - float(v), f"prompt {p}") for p, own in enumerate(part) for v in own]],
        )
        for seed, part in enumerate(shown)
    ]


def drawn(shown: float, alike: float, size: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """Which show the target, ``[training seeds, prompts, images]``; some are as their prompt is, the others by themselves."""
    own = torch.rand(size, generator=generator) < shown
    of_prompt = torch.rand((1, size[1], 1), generator=generator) < shown
    # both of two images are copied by chance ``alike``, which is then their correlation
    copied = torch.rand(size, generator=generator) < alike**0.5
    return torch.where(copied, of_prompt, own).float()


def foreseen(asked: argparse.Namespace, each: int, shown: float) -> dict[str, Any]:
    """Half the usual interval, and how often a budget whose doubling changes nothing is shown to be enough."""
    generator, size = torch.Generator().manual_seed(0), (asked.seeds, asked.prompts, each)
    halves: list[float] = []
    enough = 0
    for _ in range(asked.draws):
        one, other = (drawn(shown, asked.alike, size, generator) for _ in "ab")
        (told,) = differences([("a", "b")], [*row("a", ATTACK, one), *row("b", ATTACK, other)])
        halves.append((told["high"] - told["low"]) / 2)
        anew = torch.rand(size, generator=generator) < asked.changed
        again = torch.where(anew, drawn(shown, asked.alike, size, generator), one)
        (change,) = saturations([*row("a", ATTACK, one), *row("a", ATTACK.doubled, again)])
        enough += change["verdict"] == "saturated"
    return {
        "prompts": asked.prompts,
        "images_a_prompt": each,
        "training_seeds": asked.seeds,
        "shown_percent": round(100 * shown),
        "half_interval_points": round(median(halves)),
        "saturated": enough,
        "draws": asked.draws,
    }


def main() -> None:
    """Foresee each number of images a prompt with each share shown; print and write what is seen."""
    options = argparse.ArgumentParser(description="The smallest difference under attack that a plan can see.")
    options.add_argument("--prompts", type=int, default=10)
    options.add_argument("--each", type=int, nargs="+", default=[4, 2], help="images of a prompt and training seed")
    options.add_argument("--seeds", type=int, default=3, help="training seeds")
    options.add_argument(
        "--shown", type=float, nargs="+", default=[0.1, 0.5], help="share of images that show the target"
    )
    options.add_argument("--alike", type=float, default=0.2, help="correlation of a prompt's images")
    options.add_argument("--changed", type=float, default=0.02, help="share of images that another budget draws anew")
    options.add_argument("--draws", type=int, default=20)
    options.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = options.parse_args()
    found = [foreseen(asked, each, shown) for each, shown in product(asked.each, asked.shown)]
    for one in found:
        print(one)
    about = {"alike": asked.alike, "changed": asked.changed, "rows": found}
    asked.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
