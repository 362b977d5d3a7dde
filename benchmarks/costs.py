"""What the committed plans cost and can tell apart: `python benchmarks/costs.py` writes the numbers of README.md's tables anew.

A plan's seconds are those that the result files of its jobs say (of the store, `--store`). Jobs that several plans share count
in the first of them alone, from the top of the page. What the store does not have is foreseen, and a `~` stands before it; or a
`<` where trainings stop by what they see, so that only the most is known. Totals leave such a plan out until it was run. A
number that was measured stays, though its store is gone, while the plan has as many jobs.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.executors import asked
from expunge.jobs import AttackJob, Job, Workspace, in_order
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.read import read_plan
from expunge.stages import attack

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
IMAGES, OTHER = 32.0, 80.0
"""Evaluations a second on one of two cores: of images (half a second each at 8 steps), and where no committed record tells."""
TEXTS = 322.0
"""Texts a second that a search of the text encoder reads (ring_a_bell_speed.json)."""
TOTAL = "together"


class Taken(NamedTuple):
    """What a plan's jobs took, but for those of plans above it."""

    seconds: float
    measured: bool
    """Whether the store has every one of them."""
    jobs: int
    seeds: int
    stops: bool
    """Whether some of its trainings may end before they took what is foreseen."""

    @property
    def sign(self) -> str:
        """What stands before the seconds."""
        return "" if self.measured else "<" if self.stops else "~"

    def cells(self) -> list[str]:
        """As columns of the page."""
        return [str(self.seeds), f"{self.jobs:,}", f"{self.sign}{self.seconds:,.0f}"]


@cache
def rates() -> Mapping[str, float]:
    """Evaluations a second of each eraser: the median over the trainings that committed records tell of."""
    of: dict[str, dict[tuple[str, float], float]] = defaultdict(dict)
    for file in sorted(HERE.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            for made in json.loads(line).get("provenance", {}).get("made_by", []):
                evaluations = Cost(**made["cost"]).equivalents
                if evaluations and made["seconds"]:
                    training = (json.dumps(made["settings"], sort_keys=True), made["seconds"])
                    of[made["eraser"]][training] = evaluations / made["seconds"]
    return {eraser: median(each.values()) for eraser, each in of.items()}


def foreseen(job: Job) -> float:
    """Seconds that a job should take."""
    if isinstance(job, AttackJob):
        return attacking(job)
    rate = rates().get(getattr(job, "eraser", ""), OTHER) if job.room == "erase" else OTHER
    return job.cost.equivalents / (IMAGES if job.room in ("generate", "wanted", "pairs", "analyse") else rate)


def attacking(job: AttackJob) -> float:
    """Seconds of an attack: the images that it may ask for and those that it wants, the texts that it reads, and its search."""
    built = attack.build(job.attack, job.settings)
    targets = [Concept(name=name) for name in job.targets]
    asked = 2 * job.steps * built.budget(len(targets), len(job.prompts) * job.count)
    wanted = 2 * job.steps * sum(len(prompts) for prompts in built.needs(targets).values())
    read = built.reads(len(targets), len(job.prompts)) / TEXTS
    return (asked + wanted) / IMAGES + (job.cost.equivalents - asked) / OTHER + read


def cost(name: str, at: Workspace, counted: set[str], said: list[str]) -> Taken:
    """What a plan adds to those whose jobs are ``counted``; ``said`` are the page's cells of it."""
    plan = read_plan(HERE / f"{name}.toml")
    jobs = [job for job in in_order(m.job for m in expanded(checked(plan))) if job.key not in counted]
    counted.update(job.key for job in jobs)
    results = [(job, job.result(at)) for job in jobs]
    seconds = sum(foreseen(job) if result is None else result["seconds"] for job, result in results)
    measured = all(result is not None for _, result in results)
    stops = any(row.stop is not None for row in plan.method.values())
    if not measured and said[3:5] and said[3] == f"{len(jobs):,}" and said[4][0].isdigit():
        seconds, measured = float(said[4].replace(",", "")), True
    return Taken(seconds, measured, len(jobs), len(plan.grid.seed), stops)


def absent(name: str) -> bool:
    """Whether a plan has another model that is not here, as it takes hours to train: what the page says of it stays."""
    return bool(asked.absent(read_plan(HERE / f"{name}.toml")))


def told_apart(name: str) -> list[str]:
    """Half the width of the usual interval of a difference between rows, of ESR-1 and of PSR-1, by the committed results."""
    file = HERE / f"{name}.jsonl"
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    differences = [r for r in rows if " - " in str(r.get("method")) and r.get("group") in ("set", "others", "everyday")]
    widths = [
        [(r["high"] - r["low"]) / 2 for r in differences if str(r["metric"]).startswith(metric) and "claim" not in r]
        for metric in ("esr@1", "psr@1")
    ]
    return [f"{median(some):.0f}" if some else "–" for some in widths]


def told(lines: list[str], at: Workspace) -> Iterator[str]:
    """The page with its numbers told anew: those after the second cell of every line that begins with a plan's name."""
    counted: set[str] = set()
    whole: list[Taken] = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].strip("`*")
        if line.startswith("| `") and (HERE / f"{name}.toml").is_file() and not absent(name):
            one = cost(name, at, counted, cells)
            if one.measured or not one.stops:
                whole.append(one)
            yield f"| {' | '.join([*cells[:2], *one.cells(), *told_apart(name)])} |"
        elif name == TOTAL:
            seconds = sum(one.seconds for one in whole)
            measured = "" if all(one.measured for one in whole) else "~"
            jobs = sum(one.jobs for one in whole)
            hours = f"{measured}{seconds:,.0f}, {seconds / 7200:.1f} h on two cores"
            yield f"| {' | '.join([*cells[:2], '', f'{jobs:,}', hours, '', ''])} |"
        else:
            yield line


def main() -> None:
    """Write the page."""
    options = argparse.ArgumentParser(description="Tell the costs in benchmarks/README.md anew.")
    options.add_argument("--store", type=Path, default=Path("runs/store"), help="folder of finished jobs")
    at = Workspace(store=options.parse_args().store)
    PAGE.write_text("\n".join(told(PAGE.read_text().splitlines(), at)) + "\n")


if __name__ == "__main__":
    main()
