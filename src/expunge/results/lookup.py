"""Finding the rows of a summary that a claim, a curve or a histogram of a plan names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.core.errors import unknown
from expunge.results.meanings import plain

Known = Mapping[tuple[str, str, str], Mapping[str, Any]]
"""Rows of a summary by method, group and metric, as the file has them."""


def known_rows(summary: Sequence[Mapping[str, Any]]) -> Known:
    """The rows of a summary that are numbers with intervals."""
    return {(r["method"], r["group"], r["metric"]): r for r in summary if "low" in r and "claim" not in r}


def find_row(known: Known, method: str, group: str, metric: str) -> Mapping[str, Any] | None:
    """The row of a metric, by its whole name, or by its name without settings where only one row has it."""
    exact = known.get((method, group, metric))
    if exact is not None:
        return exact
    alike = [row for (m, g, name), row in known.items() if (m, g) == (method, group) and plain(name) == metric]
    return alike[0] if len(alike) == 1 else None


def check_rows(of: str, rows: Iterable[str], methods: Iterable[str]) -> None:
    """Refuse a row that the plan does not have.

    Raises:
        ExpungeError: naming it, and what names it (``of``).
    """
    known = list(methods)
    for name in rows:
        if name not in known:
            raise unknown(f"method of the grid in {of}", name, known)
