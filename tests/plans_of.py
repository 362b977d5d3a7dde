"""The smallest plan on the testbed, three concepts and an image each, with whatever a test changes in it."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from expunge.jobs import Job, Workspace, in_order
from expunge.plans.check import checked
from expunge.plans.expand import Measurement, expanded
from expunge.plans.opened import OpenedPlan
from expunge.plans.read import read_plan

Lines = list[dict[str, Any]]

SET: dict[str, Any] = {
    "about": "Three objects.",
    "concepts": ["church", "dog", "radio"],
    "splits": {"a": ["church", "dog"], "b": ["dog", "radio"], "c": ["radio"]},
    "dev": {"seed": 1, "prompts": {c: [f"a {c}"] for c in ("church", "dog", "radio")}},
    "test": {"seed": 9, "prompts": {c: [f"image of a {c}"] for c in ("church", "dog", "radio")}},
}
KPOP: dict[str, Any] = {"iterations": 2, "lr": 1e-3, "prompt_lr": 0.1, "sampling": {"sampling_steps": 2}}
PLAN: dict[str, Any] = {
    "about": "A small plan.",
    "count": 1,
    "control_count": 1,
    "steps": 2,
    "grid": {"method": ["original", "uce"], "split": ["a"], "seed": [0]},
    "method": {
        "uce": {"eraser": "uce", "retain": True},
        "kpop": {"eraser": "kpop", "controls": ["own"], "preset": False, "settings": KPOP},
    },
}


class Raw(str):
    """A value as it stands in the file, for what is no TOML."""


def toml(value: Any) -> str:
    """A value of a TOML file, on one line."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


def changed(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``table`` with values put at the names of ``changes``, whose parts stand between ``__``; None takes one out."""
    content = deepcopy(dict(table))
    for name, value in changes.items():
        *path, last = name.split("__")
        at = content
        for part in path:
            at = at.setdefault(part, {})
        if value is None:
            del at[last]
        else:
            at[last] = value
    return content


def written(file: Path, table: Mapping[str, Any]) -> Path:
    file.write_text("".join(f"{name} = {toml(value)}\n" for name, value in table.items()))
    return file


def tiny_set(file: Path, **changes: Any) -> Path:
    """A concept set of three objects, ``file``; ``splits__c=["dog"]`` changes a part of it."""
    return written(file, changed(SET, changes))


def tiny_plan(folder: Path, /, **changes: Any) -> Path:
    """``plan.toml`` in ``folder``, of its set ``three.toml``; ``grid__method=["kpop"]`` changes a part, None takes it out."""
    three = folder / "three.toml"
    return written(
        folder / "plan.toml", changed({"set": str(three if three.exists() else tiny_set(three)), **PLAN}, changes)
    )


def bench_words(plan: Path, *more: str) -> list[str]:
    """The command that runs a plan, with its store and its results beside it."""
    folders = ["--store", str(plan.parent / "store"), "--out", str(plan.parent / "out")]
    return ["bench", str(plan), *folders, "--workers", "1", *more]


def opened(plan: Path) -> OpenedPlan:
    return checked(read_plan(plan))


def measurements_of(plan: Path) -> list[Measurement]:
    return expanded(opened(plan))


def jobs_of(plan: Path) -> list[Job]:
    """What a plan does, in an order that can be run."""
    return in_order(m.job for m in measurements_of(plan))


def store_of(plan: Path) -> Workspace:
    """Where `bench_words` puts finished jobs."""
    return Workspace(store=plan.parent / "store")


def read_rows(file: Path) -> Lines:
    return [json.loads(line) for line in file.read_text().splitlines()]


def without_times(records: Lines) -> Lines:
    """What a run measured: everything in its records but how long it took."""
    for record in records:
        for made in record["provenance"]["made_by"]:
            del made["seconds"]
    return records
