"""Curves: numbers of a plan's summary as the lines or points of a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from expunge.core.errors import ExpungeError
from expunge.core.figure import Axis, Figure, Series
from expunge.results.lookup import Known, check_rows, find_row, known_rows
from expunge.settings.layers import filled


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
    groups: tuple[str, ...] = ()
    """The same for each place, instead."""
    turned: bool = False
    """Show 100 minus the number: a recovery is an ESR turned round."""

    @property
    def all_groups(self) -> tuple[str, ...]:
        """Whose images its places are of: one for all, or each."""
        return self.groups or (self.group,)


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure of a plan."""

    title: str
    note: str = ""
    x: tuple[float, ...] = ()
    """Places on the x axis; none where ``x_metric`` gives them."""
    x_names: tuple[str, ...] = ()
    """Words for places that are no numbers, instead: each has a bar of every line."""
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
        if sum(map(bool, (self.x, self.x_names, self.x_metric))) != 1:
            raise ExpungeError(
                f"figure '{self.title}' with x {list(self.x)}, x_names {list(self.x_names)} and x_metric {self.x_metric}: "
                "expected one"
            )
        for line in self.read:
            places = len(self.x or self.x_names or line.rows)
            for what, given in (("rows", line.rows), ("metrics", line.metrics), ("groups", line.groups)):
                if len(given) not in (1, places) and not (what == "groups" and not given):
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


def figure(curve: Curve, summary: Sequence[Mapping[str, Any]]) -> Figure:
    """The curve drawn from a summary; a number that was not measured is a gap."""
    known = known_rows(summary)
    return Figure(
        title=curve.title,
        note=curve.note,
        kind="bars" if curve.x_names else "lines" if curve.x_metric is None else "scatter",
        x=Axis(curve.x_label, curve.log),
        y=Axis(curve.y_label),
        series=[s for s in (_series(curve, line, known) for line in curve.read) if s.x],
    )


def _places(curve: Curve, line: Line, known: Known) -> Sequence[float | str | None]:
    """Where on the x axis each point of a line is."""
    if curve.x_metric is None:
        return curve.x or curve.x_names
    rows = [find_row(known, row, curve.x_group, curve.x_metric) for row in line.rows]
    return [None if row is None else row["value"] for row in rows]


def _series(curve: Curve, line: Line, known: Known) -> Series:
    places = _places(curve, line, known)
    each = (given * len(places) if len(given) == 1 else given for given in (line.rows, line.all_groups, line.metrics))
    asked = [(x, row, group, metric) for x, row, group, metric in zip(places, *each, strict=True) if x is not None]
    measured = [find_row(known, row, group, metric) for _, row, group, metric in asked]
    low, high = ("high", "low") if line.turned else ("low", "high")

    def numbers(name: str) -> list[float | None]:
        return [None if r is None else round(100 - r[name], 3) if line.turned else r[name] for r in measured]

    return Series(
        name=line.name,
        x=[x for x, *_ in asked],
        y=numbers("value"),
        low=numbers(low),
        high=numbers(high),
        labels=[row for _, row, *_ in asked] if curve.x_metric else None,
    )
