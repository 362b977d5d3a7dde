"""Curves and histograms: numbers of a plan's summary as the lines, points or bars of a figure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from expunge.core.analysis import Axis, Figure, Series
from expunge.core.errors import ExpungeError
from expunge.settings.layers import filled
from expunge.stages.claims import Known, check_rows, found_row, known_rows


@final
@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: a metric over several rows, or several metrics of one row."""

    name: str
    """What the legend calls it."""
    rows: tuple[str, ...]
    """Rows of the plan, one for each place on the x axis; or one for all."""
    metrics: tuple[str, ...]
    """Columns of the summary, one for each place; or one for all."""
    group: str = "set"
    """Whose images: set, others, a further set's name, or `key: own` and the like."""
    turned: bool = False
    """Show 100 minus the number: a recovery is an ESR turned round."""


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure of a plan."""

    title: str
    note: str = ""
    x: tuple[float, ...] = ()
    """Places on the x axis; none where ``x_metric`` gives them."""
    x_metric: str | None = None
    """A column of the summary that is each row's place instead: one number against another, a point a row."""
    x_group: str = "set"
    """Whose images that is of."""
    x_label: str
    y_label: str = "percent"
    log: bool = False
    """Whether the x axis is logarithmic."""
    lines: tuple[Any, ...]
    """Tables with name, rows, metrics, group."""

    def __post_init__(self) -> None:
        if bool(self.x) == bool(self.x_metric):
            raise ExpungeError(
                f"figure '{self.title}' with x {list(self.x)} and x_metric {self.x_metric}: expected one"
            )
        for line in self.read:
            places = len(self.x) or len(line.rows)
            for what, given in (("rows", line.rows), ("metrics", line.metrics)):
                if len(given) not in (1, places):
                    raise ExpungeError(
                        f"line '{line.name}' of figure '{self.title}' has {len(given)} {what}: expected one, or {places} "
                        "as there are places on the x axis"
                    )

    @property
    def read(self) -> list[Line]:
        """Its lines."""
        return [filled(Line, f"line of figure '{self.title}'", line) for line in self.lines]

    def check(self, methods: Sequence[str]) -> None:
        """Refuse a row that the plan does not have.

        Raises:
            ExpungeError: naming it.
        """
        check_rows(f"figure '{self.title}'", [name for line in self.read for name in line.rows], methods)


@final
@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Detections by label: a bar a row of the plan beside each label."""

    title: str
    note: str = ""
    rows: tuple[str, ...]
    """Rows of the plan."""
    group: str = "set"
    """Whose images: set, or a further set's name."""

    def check(self, methods: Sequence[str]) -> None:
        """Refuse a row that the plan does not have.

        Raises:
            ExpungeError: naming it.
        """
        check_rows(f"histogram '{self.title}'", self.rows, methods)


def file_name(title: str) -> str:
    """The file that a figure of that title is written to."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", title) + ".json"


def histogram(bars: Histogram, summary: Sequence[Mapping[str, Any]]) -> Figure:
    """Detections in a hundred images drawn; the labels that the first row has most of first.

    Raises:
        ExpungeError: if the summary has none of these rows' detections.
    """
    kept = [r for r in summary if r["metric"].split(" (")[0] == "detections" and r["group"] == bars.group]
    shown = {r["method"]: r for r in kept}
    rates = {
        row: {label: 100 * count / shown[row]["n"] for label, count in shown[row]["counts"].items()}
        for row in bars.rows
        if row in shown
    }
    if not rates:
        raise ExpungeError(f"histogram '{bars.title}' without counts of detections: expected a summary that has them")
    first = next(iter(rates.values()))
    labels = {label for found in rates.values() for label in found} or {"(nothing)"}
    ordered = sorted(labels, key=lambda label: (-first.get(label, 0), label))
    series = [
        Series(name=row, x=ordered, y=[round(found.get(label, 0), 3) for label in ordered])
        for row, found in rates.items()
    ]
    return Figure(title=bars.title, note=bars.note, kind="bars", y=Axis("detections in 100 images"), series=series)


def figure(curve: Curve, summary: Sequence[Mapping[str, Any]]) -> Figure:
    """The curve drawn from a summary; a number that was not measured is a gap."""
    known = known_rows(summary)
    return Figure(
        title=curve.title,
        note=curve.note,
        kind="lines" if curve.x_metric is None else "scatter",
        x=Axis(curve.x_label, curve.log),
        y=Axis(curve.y_label),
        series=[s for s in (_series(curve, line, known) for line in curve.read) if s.x],
    )


def _places(curve: Curve, line: Line, known: Known) -> Sequence[float | None]:
    """Where on the x axis each point of a line is."""
    if curve.x_metric is None:
        return curve.x
    found = [found_row(known, row, curve.x_group, curve.x_metric) for row in line.rows]
    return [None if r is None else r["value"] for r in found]


def _series(curve: Curve, line: Line, known: Known) -> Series:
    places = _places(curve, line, known)
    rows, metrics = ((given * len(places) if len(given) == 1 else given) for given in (line.rows, line.metrics))
    asked = [(x, row, metric) for x, row, metric in zip(places, rows, metrics, strict=True) if x is not None]
    found = [found_row(known, row, line.group, metric) for _, row, metric in asked]
    low, high = ("high", "low") if line.turned else ("low", "high")

    def numbers(key: str) -> list[float | None]:
        return [None if r is None else round(100 - r[key], 3) if line.turned else r[key] for r in found]

    return Series(
        name=line.name,
        x=[x for x, _, _ in asked],
        y=numbers("value"),
        low=numbers(low),
        high=numbers(high),
        labels=[row for _, row, _ in asked] if curve.x_metric else None,
    )
