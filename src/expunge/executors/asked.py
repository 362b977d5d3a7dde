"""Which of the results that were kept are what a plan asks for today; nothing is run, and no file of the store is read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.jobs.workspace import model
from expunge.plans.check import checked
from expunge.plans.expand import Measurement, expanded
from expunge.plans.read import read_plan
from expunge.plans.schema import FAST, Plan, precision_of
from expunge.results.group import SET
from expunge.store import read_lines

Records = Sequence[Mapping[str, Any]]


def measurements_of(plan: Plan, records: Records) -> list[Measurement]:
    """What ``plan`` measures; where it leaves the precision of images to the machine, in that of ``records``.

    Raises:
        ExpungeError: as `checked` and `expanded`.
    """
    imaged = [r["provenance"] for r in records if "/" in r["provenance"].get("images", "")]
    own = [p["dtype"] for p in imaged if p.get("dtype") and precision_of(p["method"]) is None]
    made_in = plan.image_dtype if plan.image_dtype != FAST or not own else max(set(own), key=own.count)
    return expanded(checked(replace(plan, image_dtype=made_in)))


def answered(plan: Plan, records: Records) -> frozenset[str]:
    """The methods of ``plan`` whose records are of the very jobs that it asks for today, none of its own set lacking.

    A job's key covers the model's files and every setting, so what was made on another testbed, or with an earlier text of the
    plan, does not count. An analysis keeps no images: its records count with those of their method.

    Raises:
        ExpungeError: as `checked` and `expanded`.
    """
    imaged = [r["provenance"] for r in records if "/" in r["provenance"].get("images", "")]
    here = model(plan.model, plan.dtype).identity() if imaged else ""
    if here not in {p.get("model_sha256") for p in imaged}:
        return frozenset()
    measurements = measurements_of(plan, records)
    asked = _by_method((m.method, m.folder) for m in measurements)
    needed = _by_method((m.method, m.folder) for m in measurements if m.group == SET and m.folder)
    found = _by_method((p["method"], p["images"]) for p in imaged)
    return frozenset(name for name, made in found.items() if needed.get(name, set()) <= made <= asked.get(name, set()))


def _by_method(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    by: dict[str, set[str]] = {}
    for method, folder in pairs:
        by.setdefault(method, set()).add(folder)
    return by


def answered_in(folder: Path) -> dict[str, frozenset[str]]:
    """`answered` of each plan of a folder that has results beside it, by the plan's name.

    Raises:
        ExpungeError: for a plan that cannot be read or contradicts itself, or results that are damaged.
    """
    found: dict[str, frozenset[str]] = {}
    for file in sorted(folder.glob("*.toml")):
        results = file.with_suffix(".jsonl")
        if results.is_file():
            records = [row for row in read_lines(results) if "provenance" in row]
            found[file.stem] = answered(read_plan(file), records)
    return found
