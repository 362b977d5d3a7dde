"""What records tell of their summary, on the results that are committed: all of it fits, and what is changed does not."""

from pathlib import Path

import pytest

from expunge.executors.submission import left_out
from expunge.results.retold import retold
from plans_of import read_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OLDER = {"bank", "duo-fig3", "kpop-fig4"}
"""Summaries in words that this version no longer has, of records that are older still."""
TABLES = sorted(path.stem for path in BENCHMARKS.glob("*.toml") if path.with_suffix(".jsonl").exists())


def kept(name):
    """Records, and the rows of the summary whose records are not left out of committed files."""
    rows = read_rows(BENCHMARKS / f"{name}.jsonl")
    records = [row for row in rows if "provenance" in row and not row["metric"].startswith("became@")]
    numbers = [row for row in rows if "provenance" not in row and "claim" not in row and row["group"] != "paper"]
    gone = lambda row: left_out({**row, "provenance": {"group": row["group"]}}) or row["metric"] == "became"  # noqa: E731
    return records, [row for row in numbers if not gone(row)]


@pytest.mark.parametrize("name", [name for name in TABLES if name not in OLDER])
def test_committed_summaries_are_those_of_their_records(name):
    records, summary = kept(name)
    told = retold(records, summary)
    assert told.problem == ""
    rows = [row for row in summary if "low" in row]
    assert told.values + told.differences + told.beyond == len(rows)
    assert told.values > 0


CHANGES = {
    "value": lambda row: {"value": row["value"] + 0.5},
    "n": lambda row: {"n": row["n"] + 1},
    "seeds": lambda row: {"training_seeds": 4},
    "interval": lambda row: {"low": row["value"], "high": row["value"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_number_is_changed_it_is_named(change):
    """Each tenth number of a table with three seeds, changed alone."""
    records, summary = kept("kpop-table2")
    numbers = [row for row in summary if "low" in row and "verdict" not in row and row["training_seeds"] == 3]
    assert len(numbers) > 30
    for row in numbers[::10]:
        other = {**row, **CHANGES[change](row)}
        told = retold(records, [other if one is row else one for one in summary])
        assert told.problem.startswith(f"{row['method']} {row['group']} {row['metric']} ")
