"""Tables of text under a header (CSV and its kin): read whole, or refused with the line and the reason."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from expunge.core.errors import ExpungeError

DELIMITERS = (",", ";", "\t")
"""What may stand between two fields: of these, the one that cuts the header into most."""


class Row(NamedTuple):
    """The fields of one row."""

    line: int
    """Of the file, the first line that the row is in."""
    fields: Sequence[str]


class Table(NamedTuple):
    """A table as it stands in its file."""

    columns: Sequence[str]
    rows: Sequence[Row]

    def at(self, name: str) -> int | None:
        """Where the column ``name`` stands, in any case, with spaces or underscores; None if there is none.

        Raises:
            ExpungeError: if two columns have that name.
        """
        places = [i for i, column in enumerate(self.columns) if plain(column) == plain(name)]
        if len(places) > 1:
            raise ExpungeError(f"the header names '{name}' {len(places)} times: expected it once")
        return places[0] if places else None


def plain(name: str) -> str:
    """A column's name without what spellings differ in."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def read_table(path: Path) -> Table:
    """A table whose fields stand between commas, semicolons or tabs; lines with nothing on them are no rows.

    Raises:
        ExpungeError: if it cannot be read as one, with the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as opened:
            lines = opened.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExpungeError(f"'{path}' cannot be read as CSV: {error}") from error
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("version https://git-lfs"):
        raise ExpungeError(f"'{path}' is a Git LFS pointer: expected the file it points to (git lfs pull)")
    delimiter = max(DELIMITERS, key=first.count)
    rows = list(_rows(path, lines, delimiter)) if first else []
    if len(rows) < 2:
        raise ExpungeError(f"'{path}' has no row: expected a header and a row for each image")
    columns = [name.strip() for name in rows[0].fields]
    for row in rows[1:]:
        if len(row.fields) != len(columns):
            raise ExpungeError(
                f"'{path}' line {row.line} has {len(row.fields)} fields and the header {len(columns)}: expected as many "
                f"(a text with a {_spoken(delimiter)} in it stands in quotes)"
            )
    return Table(columns, rows[1:])


def _rows(path: Path, lines: Sequence[str], delimiter: str) -> Iterator[Row]:
    """Header and rows, each with the line that it begins at."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ExpungeError(
                f"'{path}' line {line} cannot be read as CSV: expected the quote that opens in that row to close before the "
                f"next {_spoken(delimiter)}, and quotes in a text to be doubled ({error})"
            ) from error
        if fields:
            yield Row(line, fields)


def _spoken(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}[delimiter]
