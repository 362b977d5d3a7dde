"""Histograms: detections by label that a plan's summary counts, as the bars of a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from expunge.core.errors import ExpungeError
from expunge.core.figure import Axis, Figure, Series
from expunge.results.lookup import check_rows
from expunge.results.meanings import DETECTIONS, plain


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


def histogram(bars: Histogram, summary: Sequence[Mapping[str, Any]]) -> Figure:
    """Detections in a hundred images drawn; the labels that the first row has most of first.

    Raises:
        ExpungeError: if the summary has none of these rows' detections.
    """
    kept = [r for r in summary if plain(r["metric"]) == DETECTIONS and r["group"] == bars.group]
    counted = {r["method"]: r for r in kept}
    rates = {
        row: {label: 100 * count / counted[row]["n"] for label, count in counted[row]["counts"].items()}
        for row in bars.rows
        if row in counted
    }
    if not rates:
        raise ExpungeError(f"histogram '{bars.title}' without counts of detections: expected a summary that has them")
    first = next(iter(rates.values()))
    labels = {label for rate in rates.values() for label in rate} or {"(nothing)"}
    ordered = sorted(labels, key=lambda label: (-first.get(label, 0), label))
    series = [
        Series(name=row, x=ordered, y=[round(rate.get(label, 0), 3) for label in ordered])
        for row, rate in rates.items()
    ]
    return Figure(title=bars.title, note=bars.note, kind="bars", y=Axis("detections in 100 images"), series=series)
