"""A folder of plans with their kept results, read for a leaderboard."""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from expunge.core.errors import ExpungeError
from expunge.results.files import PLAN
from expunge.store.atomic import read_lines
from expunge.store.shapes import NUMBER, RECORD, SUMMARY_ROW, check_shape
from expunge.testbed import version_of

CLAIM = {"says": str, "rows": [str]}
"""What a claim of a plan has."""


@final
@dataclass(frozen=True, kw_only=True)
class Kept:
    """A plan of a folder, and the results that lie beside it."""

    name: str
    plan: Mapping[str, Any]
    """The tables of its file."""
    records: Sequence[Mapping[str, Any]]
    summary: Sequence[Mapping[str, Any]]
    answered: Collection[str] = ()
    """Methods whose results are what the plan asks for as it is now."""
    unopened: str = ""
    """Why it could not be told which results these are; empty where it was."""
    files: Sequence[Path] = ()
    """The plan's file, and its table and results if there are any."""

    @property
    def methods(self) -> list[str]:
        """The rows that the plan asks for."""
        return _several(self.plan["grid"].get("method", []))

    def testbed_of(self, method: str) -> str:
        """Which model the results of a row were made on, by the hash of its files; empty if its records do not say."""
        made = [r for r in self.records if r["provenance"].get("method") == method]
        hashes = {str(r["provenance"]["model_sha256"]): r["model"] for r in made if "model_sha256" in r["provenance"]}
        return ", ".join(version_of(sha256) or f"{name} ({sha256[:8]})" for sha256, name in hashes.items())


def holds_plans(folder: Path) -> bool:
    """Whether a folder is one of plans, and not a run: a TOML file in it has a grid."""
    files = [] if (folder / PLAN).is_file() else folder.glob("*.toml")
    grid = re.compile(rb"^\s*(\[grid\]|grid\s*=)", re.MULTILINE)
    return any(grid.search(file.read_bytes()) for file in files if file.is_file())


def read(folder: Path) -> list[Kept]:
    """The plans of ``folder``, by name, with their ``NAME.jsonl`` (records and then their summary) and ``NAME.md`` (the table).

    Raises:
        ExpungeError: for a file that is no plan, or damaged results.
    """
    return [_kept(file) for file in sorted(folder.glob("*.toml"))]


def with_answers(
    plans: Sequence[Kept], answered: Mapping[str, Collection[str]], unopened: Mapping[str, str] | None = None
) -> list[Kept]:
    """The same plans, each told the methods whose results it asks for as it is now, or why it could not be opened to tell."""
    why = unopened or {}
    return [replace(one, answered=answered.get(one.name, ()), unopened=why.get(one.name, "")) for one in plans]


def _kept(file: Path) -> Kept:
    plan = _plan(file)
    results = file.with_suffix(".jsonl")
    rows = read_lines(results) if results.is_file() else []
    records = [row for row in rows if "provenance" in row]
    summary = [row for row in rows if "provenance" not in row]
    for record in records:
        check_shape(f"a record in '{results}'", record, RECORD)
        check_shape(f"a record in '{results}'", record, {"provenance": {"method": str, "group": str}})
    for row in summary:
        check_shape(f"a row of the summary in '{results}'", row, {**SUMMARY_ROW, **(NUMBER if "low" in row else {})})
    files = [one for one in (file, file.with_suffix(".md"), results) if one.is_file()]
    return Kept(name=file.stem, plan=plan, records=records, summary=summary, files=files)


def _plan(file: Path) -> dict[str, Any]:
    """The tables of a plan's file."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExpungeError(f"'{file}' cannot be read as TOML: {error}") from error
    check_shape(f"plan '{file}'", content, {"about": str, "set": str, "grid": {}})
    for claim in content.get("claims", []):
        check_shape(f"a claim of plan '{file}'", claim, CLAIM)
    return content


def _several(value: Any) -> list[str]:
    return list(value) if isinstance(value, list) else [value]
