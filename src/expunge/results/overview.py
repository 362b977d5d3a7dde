"""The figures that every run with enough numbers has: removed against kept, and recovery beside its controls."""

from collections.abc import Sequence

from expunge.core.figure import Axis, Figure, Series
from expunge.results.recoveries import injected, returned, without_key
from expunge.results.rows import Row, group_of, numbers


def overview(summary: Sequence[Row]) -> list[Figure]:
    """Those of the two figures that a summary has the numbers for."""
    return [figure for figure in (_trade(summary), _recovery(summary)) if figure is not None]


def _trade(summary: Sequence[Row]) -> Figure | None:
    """ESR-1 against PSR-1: of the concepts kept, or else of what nobody named."""
    by = {(row["group"], row["metric"], row["method"]): row for row in numbers(summary)}
    kept = "set" if any(place[:2] == ("set", "psr@1") for place in by) else "others"
    methods = [m for group, metric, m in by if (group, metric) == ("set", "esr@1") and (kept, "psr@1", m) in by]
    if len(methods) < 2:
        return None
    held = [by[kept, "psr@1", method] for method in methods]
    points = Series(
        name="",
        x=[by["set", "esr@1", method]["value"] for method in methods],
        y=[row["value"] for row in held],
        low=[row["low"] for row in held],
        high=[row["high"] for row in held],
        labels=methods,
    )
    return Figure(
        title="Removed against kept",
        note="Up and to the right is better: the target is gone, the rest is there. Bars: 95 % intervals of what is kept.",
        kind="scatter",
        x=Axis("ESR-1, %: target not shown"),
        y=Axis(f"PSR-1, %: {'kept concepts' if kept == 'set' else 'what nobody named'} shown"),
        series=[points],
    )


def _recovery(summary: Sequence[Row]) -> Figure | None:
    """What came back with each key, a group of bars a method."""
    rows = [row for row in (*without_key(summary), *returned(summary)) if row["metric"] == "esr@1"]
    if not rows:
        return None
    by_method = {
        method: [r for r in rows if r["method"] == method] for method in dict.fromkeys(r["method"] for r in rows)
    }
    return Figure(
        title="Recovery beside its controls",
        note="Images in which the target is back. Bars are 95 % intervals.",
        kind="bars",
        y=Axis("target shown, %"),
        series=[
            Series(
                name=method,
                x=[injected(group_of(row)) for row in own],
                y=[row["value"] for row in own],
                low=[row["low"] for row in own],
                high=[row["high"] for row in own],
            )
            for method, own in by_method.items()
        ],
    )
