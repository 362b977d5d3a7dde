"""Records: one number a line."""

from collections.abc import Sequence
from pathlib import Path

from expunge.core.record import Record
from expunge.store.atomic import write_lines


def write_records(path: Path, records: Sequence[Record], append: bool = False) -> None:
    """Write records to a ``.jsonl`` file, after those it has if ``append``; the file is replaced whole or not at all."""
    old = path.read_text() if append and path.is_file() else ""
    write_lines(path, [r.as_json() for r in records], before=old)
