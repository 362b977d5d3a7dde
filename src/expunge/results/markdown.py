"""A summary's tables in Markdown."""

from collections.abc import Sequence
from itertools import chain

from expunge.results import tables
from expunge.results.grid import BLANK, Cell, Table
from expunge.results.published import sources
from expunge.results.rows import Row


def text(summary: Sequence[Row]) -> str:
    """The summary in Markdown: a row a method and a column a metric; then recoveries, paired differences and claims."""
    parts = [written(beside(tables.measured(summary), tables.costs(summary)))]
    published = [f"- {method}: {'; '.join(words)}" for method, words in sources(summary).items()]
    if published:
        says = "Columns named paper are published figures, of other models, prompts and judges:"
        parts += [says, "\n".join(published)]
    titled = {
        "Recovery, by what is injected: images that show the target, in percent (valid images in percent)": (
            tables.recoveries(summary)
        ),
        "By split": tables.by_split(summary),
        **{f"Analysis: {name}": table for name, table in tables.analyses(summary).items()},
        "Paired differences in points": tables.differences(summary),
        "Claims of the papers, and what was measured here": tables.claims(summary),
    }
    parts += chain.from_iterable((title, written(table)) for title, table in titled.items() if table.rows)
    return "\n\n".join(parts) + "\n"


def beside(left: Table, right: Table) -> Table:
    """Two tables of the same methods as one: the rows of ``left``, each with what ``right`` has of it."""
    known = {row[0].text: row[1:] for row in right.rows}
    blank = [BLANK] * (len(right.head) - 1)
    rows = [[*row, *known.get(row[0].text, blank)] for row in left.rows]
    return Table(head=[*left.head, *right.head[1:]], rows=rows)


def written(table: Table) -> str:
    """A table."""
    lines = [_line(table.head), "|---" * len(table.head) + "|"]
    return "\n".join([*lines, *(_line([_cell(cell) for cell in row]) for row in table.rows)])


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |"


def _cell(cell: Cell) -> str:
    valid = "" if cell.valid is None else f" ({cell.valid:.0f})"
    verdict = f" {cell.verdict}" if cell.verdict else ""
    return cell.written() + valid + verdict
