"""The values behind every number of a table, and the number's interval."""

from collections.abc import Sequence
from typing import NamedTuple

from expunge.core.record import Interval, Runs, hull, in_percent, mean_of, nested, of_attacks, wilson
from expunge.results.finished import Finished
from expunge.results.group import Group


class CellKey(NamedTuple):
    """What a number of a table is of."""

    method: str
    group: Group
    metric: str
    """With its settings in brackets, where they differ from the metric's defaults."""


Cells = dict[CellKey, dict[int, dict[str, list[tuple[str, float]]]]]
"""Values by cell, training seed and split, each with the concept that it is of."""


def cells(finished: Sequence[Finished], once: bool) -> Cells:
    """The values behind every number of the table; ``once`` counts an image once, whatever splits it serves.

    Under an attack the label says which run of it, too.
    """
    values_at: Cells = {}
    counted: set[tuple[CellKey, str, str]] = set()
    for one in finished:
        for record, values in zip(one.records, one.values, strict=True):
            if record["metric"].startswith("became@") or not values:
                continue
            cell = CellKey(one.method, one.group, record["metric"] + one.variant)
            kept = values_at.setdefault(cell, {}).setdefault(one.seed, {}).setdefault(one.split, [])
            run = f", run {one.run}" if one.group.kind == "attack" else ""
            named = [(f"{label}{run}", value) for label, value in values]
            kept.extend((label, value) for label, value in named if not (once and (cell, one.images, label) in counted))
            counted.update((cell, one.images, label) for label, _ in named)
    return values_at


def points(finished: Sequence[Finished]) -> set[CellKey]:
    """The places whose values are differences already, in points."""
    return {
        CellKey(one.method, one.group, record["metric"] + one.variant)
        for one in finished
        for record in one.records
        if record.get("unit") == "points"
    }


def interval(group: Group, values: Sequence[float], runs: Runs, *, signed: bool) -> Interval:
    """A share's interval, or a mean's, of which Wilson says nothing; an attack's images count by its runs.

    Args:
        group: what the values are of.
        values: all of them.
        runs: the same by training seed and split, each with its concept.
        signed: whether they are differences.
    """
    if signed or not set(values) <= {0.0, 1.0}:
        return in_percent(mean_of(runs))
    resampled = of_attacks(runs) if group.kind == "attack" else nested(runs)
    return hull(wilson(sum(values), len(values)), resampled)
