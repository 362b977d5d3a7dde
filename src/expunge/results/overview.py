"""The figures that every run with enough numbers has: removed against kept, and recovery beside its controls."""

from collections.abc import Sequence

from expunge.core.figure import Axis, Figure, Series
from expunge.results.meanings import plain
from expunge.results.recoveries import injected, returned, without_key
from expunge.results.rows import Row, group_of, numbers


def overview(summary: Sequence[Row]) -> list[Figure]:
    """Those of the two figures that a summary has the numbers for; one of each for every judge, if there are several."""
    shown = [
        row for row in numbers(summary) if plain(row["metric"]) == "esr@1" and group_of(row).kind in ("set", "key")
    ]
    variants = dict.fromkeys(row["metric"].removeprefix("esr@1") for row in shown)
    figures = [draw(summary, variant, len(variants) > 1) for draw in (_trade, _recovery) for variant in variants]
    return [figure for figure in figures if figure is not None]


def _trade(summary: Sequence[Row], variant: str, several: bool) -> Figure | None:
    """ESR-1 against PSR-1: of the concepts kept, or else of what nobody named."""
    by = {(row["group"], row["metric"], row["method"]): row for row in numbers(summary)}
    esr, psr = f"esr@1{variant}", f"psr@1{variant}"
    kept = "set" if any(place[:2] == ("set", psr) for place in by) else "others"
    methods = [m for group, metric, m in by if (group, metric) == ("set", esr) and (kept, psr, m) in by]
    if len(methods) < 2:
        return None
    held = [by[kept, psr, method] for method in methods]
    points = Series(
        name="",
        x=[by["set", esr, method]["value"] for method in methods],
        y=[row["value"] for row in held],
        low=[row["low"] for row in held],
        high=[row["high"] for row in held],
        labels=methods,
    )
    return Figure(
        title="Removed against kept" + (variant if several else ""),
        note="Up and to the right is better: the target is gone, the rest is there. Bars: 95 % intervals of what is kept.",
        kind="scatter",
        x=Axis("ESR-1, %: target not shown"),
        y=Axis(f"PSR-1, %: {'kept concepts' if kept == 'set' else 'what nobody named'} shown"),
        series=[points],
    )


def _recovery(summary: Sequence[Row], variant: str, several: bool) -> Figure | None:
    """What came back with each key, a group of bars a method."""
    rows = [row for row in (*without_key(summary), *returned(summary)) if row["metric"] == f"esr@1{variant}"]
    if not rows:
        return None
    by_method = {
        method: [r for r in rows if r["method"] == method] for method in dict.fromkeys(r["method"] for r in rows)
    }
    return Figure(
        title="Recovery beside its controls" + (variant if several else ""),
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
