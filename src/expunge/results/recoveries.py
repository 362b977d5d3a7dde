"""What came back with a key: an erasing success rate turned round."""

from collections.abc import Sequence
from typing import Any

from expunge.results.group import Group
from expunge.results.meanings import plain
from expunge.results.rows import Row, group_of, numbers

BARE = Group(kind="key", control="none")
"""The edited model without a key."""
INJECTED = {
    "none": "no key",
    "own": "own",
    "random": "random",
    "other": "other",
    "fresh": "fresh",
    "neutral": "own, with a neutral text",
    "original": "own, in the original model",
    "other seed": "that of another seed",
}
"""What a control injects, and into what; any other name is the method in whose model the key is used."""


def injected(group: Group) -> str:
    """What a recovery injects, and into what, as a column calls it."""
    if group.step is None:
        return INJECTED.get(group.control, f"own, in the model of {group.control}")
    if group.control == "fresh":
        return f"fresh {group.step} updates"
    if group.control == "own":
        return f"own after {group.step}"
    return f"own, in the model of {group.control} after {group.step}"


def turned(row: Row) -> dict[str, Any]:
    """A row of ESR as the share of images that the target came back in."""
    return {**row, "value": 100 - row["value"], "low": 100 - row["high"], "high": 100 - row["low"]}


def returned(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """The share of images that a target came back in, by what was injected: ESR-1 turned round."""
    return [turned(row) for row in _erased(summary) if group_of(row).kind == "key"]


def without_key(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """The same without a key, from a method's own set, for methods with keys whose plan did not ask for it."""
    rows = _erased(summary)
    keyed = {(r["method"], r["metric"]) for r in rows if group_of(r).kind == "key"}
    there = {(r["method"], r["metric"]) for r in rows if group_of(r) == BARE}
    own = [r for r in rows if group_of(r).kind == "set" and (r["method"], r["metric"]) in keyed - there]
    return [turned({**row, "group": str(BARE)}) for row in own]


def _erased(summary: Sequence[Row]) -> list[Row]:
    """The rows of ESR-1."""
    return [row for row in numbers(summary) if plain(row["metric"]) == "esr@1"]
