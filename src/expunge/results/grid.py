"""Cells under their heads, before they are written as Markdown or HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from expunge.results.rows import Row


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: words, or a number with its interval."""

    text: str = ""
    """What is written where there is no ``value``."""
    sort: float | str | None = None
    """What it is sorted by, if not by its value or text."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    """Limits of the value's 95 % interval, where it has one."""
    share: bool = False
    """Whether the value is a share in percent, which may be drawn as a bar from 0 to 100."""
    verdict: str = ""
    """Which way a difference points: higher, lower or undecided."""
    equal: bool = False
    """Whether a difference shows equal quality."""
    note: str = ""
    """What a page writes small below it: of how many images and training seeds it is."""
    valid: float | None = None
    """Of what came back with a key: percent of the images that are pictures at all."""

    @property
    def order(self) -> float | str:
        """What it is sorted by."""
        return next(order for order in (self.sort, self.value, self.text) if order is not None)

    def written(self, signed: bool = False) -> str:
        """The words, or the number with its interval."""
        if self.value is None:
            return self.text
        sign = "+" if signed else ""
        number = f"{self.value:{sign}.1f}"
        return number if self.low is None else f"{number} [{self.low:{sign}.1f}, {self.high:{sign}.1f}]"


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells under their heads; a row begins with what it is of."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


BLANK = Cell(text="–")


def grid(rows: Sequence[Row], heading: Callable[[Row], str], cell: Callable[[Row], Cell]) -> Table:
    """A row a method, a column a heading."""
    heads = list(dict.fromkeys(heading(row) for row in rows))
    cells = {(row["method"], heading(row)): cell(row) for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [[Cell(text=method), *(cells.get((method, head), BLANK) for head in heads)] for method in methods]
    return Table(head=["method", *heads], rows=lines)
