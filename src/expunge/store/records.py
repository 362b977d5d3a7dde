"""Records: one number a line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.record import Record
from expunge.store.atomic import read_lines, write_lines
from expunge.store.locks import claimed


def write_records(
    path: Path, records: Sequence[Record], append: bool = False, measured: Mapping[str, Any] | None = None
) -> None:
    """Write records to a ``.jsonl`` file, after those it has if ``append``; the file is replaced whole or not at all.

    ``measured`` is what each of them says of when it was measured, and on what.

    Raises:
        ExpungeError: if the file cannot be written, or holds something else than records.
    """
    rows = [{**r.as_json(), **({} if measured is None else {"measured": dict(measured)})} for r in records]
    with claimed(path):
        old = ""
        if append and path.is_file() and read_lines(path):
            old = path.read_text(encoding="utf-8").rstrip("\n") + "\n"
        write_lines(path, rows, before=old)
