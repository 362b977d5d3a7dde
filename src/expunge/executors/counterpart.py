"""Which committed plan somebody's results are of: the same one, or that one with rows added."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.errors import ExpungeError, unknown
from expunge.plans.read import read_plan, typed
from expunge.plans.schema import Plan

LONGER = ("compare", "claims")
"""Lists of a plan that may have more."""
WIDER = ("method", "pairs")
"""Tables of a plan that may have more, by name."""


class Counterpart(NamedTuple):
    """A committed plan, and what a contribution's plan has beside it."""

    name: str
    file: Path
    """The committed plan's."""
    plan: Plan
    """The contribution's."""
    added: Sequence[str]
    """Rows that the committed plan does not have."""
    more: Sequence[str]
    """What else the committed plan does not have, in words."""
    compared: Sequence[str]
    """The committed plans that it was held against."""


def counterpart(kept: Mapping[str, Any], where: Path, against: Path, name: str | None) -> Counterpart:
    """The plan in ``against`` that the plan ``kept``, as results keep it, is or adds rows to.

    Args:
        kept: the content of a folder's ``plan.json``.
        where: the file, for errors; its folder's name is looked for first.
        against: folder of committed plans.
        name: of the one that is meant; looked for if not given.

    Raises:
        ExpungeError: if there is none, naming what the nearest says otherwise.
    """
    own = typed(f"'{where}'", {key: value for key, value in kept.items() if key != "format"})
    files = {file.stem: file for file in sorted(against.glob("*.toml"))} if against.is_dir() else {}
    if not files:
        raise ExpungeError(f"'{against}' holds no plans: expected a folder of committed plans, as benchmarks/")
    if name is not None and name not in files:
        raise unknown(f"plan in '{against}'", name, files)
    folder = where.resolve().parent.name
    chosen = [name] if name is not None else [folder] if folder in files else list(files)
    apart = {one: difference(_committed(files[one]), own) for one in chosen}
    same = [one for one, words in apart.items() if not words]
    if same:
        committed = {one: _committed(files[one]).grid.method for one in same}
        nearest = max(same, key=lambda one: len(committed[one]))
        added = [row for row in own.grid.method if row not in committed[nearest]]
        return Counterpart(nearest, files[nearest], own, added, _more(_committed(files[nearest]), own), chosen)
    nearest = min(apart, key=lambda one: len(apart[one]))
    raise ExpungeError(
        f"'{where}' is not the plan '{files[nearest]}', nor that with rows added: {apart[nearest][0]}"
        + ("" if len(chosen) == 1 else f" (the nearest of {len(chosen)} plans in '{against}')")
    )


def _committed(file: Path) -> Plan:
    """A committed plan as results keep it: what JSON makes of it."""
    plan = read_plan(file)
    return typed(f"plan '{file}'", json.loads(json.dumps({**plan.source, "model": plan.model})))


def difference(committed: Plan, own: Plan) -> list[str]:
    """What ``own`` says otherwise than ``committed``, in words; empty if it adds rows at most, and what is said of them."""
    words: list[str] = []
    for field in fields(Plan):
        before, now = getattr(committed, field.name), getattr(own, field.name)
        if not field.compare or before == now:
            continue
        if field.name == "grid":
            words += _rows(before.method, now.method)
            words += [
                f"grid.{axis} is {_short(getattr(now, axis))}: expected {_short(getattr(before, axis))}"
                for axis in ("split", "seed")
                if getattr(before, axis) != getattr(now, axis)
            ]
        elif field.name in LONGER:
            words += [f"{field.name} lacks {_short(one)}" for one in before if one not in now]
        elif field.name in WIDER:
            words += [
                f"{field.name}.{name} is {'not there' if name not in now else 'another'}: expected {_short(before[name])}"
                for name in before
                if now.get(name) != before[name]
            ]
        else:
            words.append(f"{field.name} is {_short(now)}: expected {_short(before)}")
    return words


def _more(committed: Plan, own: Plan) -> list[str]:
    """Lines and tables of ``own`` beside its rows that ``committed`` does not have, in words."""
    lines = [
        f"{len(new)} of {name}"
        for name in LONGER
        if (new := [one for one in getattr(own, name) if one not in getattr(committed, name)])
    ]
    return [*lines, *(f"pairs '{name}'" for name in own.pairs if name not in committed.pairs)]


def _rows(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Rows that lack, or stand in another order: where rows stand decides how the table is told."""
    lacking = [name for name in before if name not in now]
    if lacking:
        return [f"grid.method lacks '{lacking[0]}': expected every row of the plan"]
    order = [name for name in now if name in before]
    return [] if order == list(before) else [f"grid.method is in the order {_short(order)}: expected {_short(before)}"]


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
