"""What records tell of their summary, on the results that are committed: all of it fits, and what is changed does not."""

from pathlib import Path

import pytest

from expunge.cli import main
from expunge.results import summary
from expunge.results.finished import Wanted
from expunge.results.kept import left_out
from expunge.results.retold import retold
from plans_of import bench_words, read_rows, tiny_plan
from results.finished import finished

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TABLES = sorted(path.stem for path in BENCHMARKS.glob("*.toml") if path.with_suffix(".jsonl").exists())


def kept(name):
    """Records, and the rows of the summary but for those whose records were left out of the file; older files have more."""
    rows = read_rows(BENCHMARKS / f"{name}.jsonl")
    records = [row for row in rows if "provenance" in row and not row["metric"].startswith("became@")]
    numbers = [row for row in rows if "provenance" not in row and "claim" not in row and row["group"] != "paper"]
    told = {(row["provenance"]["group"], row["metric"] + row["provenance"]["variant"]) for row in records}

    def gone(row):
        untold = (row["group"], row["metric"]) not in told
        return row["metric"] == "became" or (untold and left_out({**row, "provenance": {"group": row["group"]}}))

    return records, [row for row in numbers if not gone(row)]


@pytest.mark.parametrize("name", TABLES)
def test_committed_summaries_are_those_of_their_records(name):
    records, rows = kept(name)
    told = retold(records, rows)
    assert told.problem == ""
    assert told.values + told.differences + told.beyond == len([row for row in rows if "low" in row])
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
    records, rows = kept("kpop-table2")
    numbers = [row for row in rows if "low" in row and "verdict" not in row and row["training_seeds"] == 3]
    assert len(numbers) > 30
    for row in numbers[::10]:
        other = {**row, **CHANGES[change](row)}
        told = retold(records, [other if one is row else one for one in rows])
        assert told.problem.startswith(f"{row['method']} {row['group']} {row['metric']} ")


def test_what_the_summary_lacks_is_said_before_a_difference_that_needs_it():
    records, rows = kept("kpop-table2")
    rows.sort(key=lambda row: "verdict" not in row)  # differences first
    lacking = next(row for row in rows if (row["method"], row["group"], row["metric"]) == ("kpop", "set", "psr@1"))
    told = retold(records, [row for row in rows if row is not lacking])
    assert told.problem == "kpop set psr@1 is in the records, and not in the summary"


PLAIN = "attack: p4d (k 3)"
DOUBLED, CHANGE = f"{PLAIN}, doubled", f"{PLAIN}, doubled - plain"


def attacked():
    """Records and summary of two attacked rows on three training seeds, the attack doubled on one of them."""
    back = {("kpop", PLAIN): 6, ("kpop", DOUBLED): 60, ("esd", PLAIN): 12}
    finishes = [
        finished(
            method,
            [("weapon", float(i >= hits), f"prompt {i % 10}") for i in range(120)],
            {
                "metric": "dsr", "value": 100 * (120 - hits) / 120, "n": 120, "concepts": ["weapon"], "knowledge": {},
                "provenance": {"edits": [], "made_by": []},
            },
            group=group,
            seed=seed,
            images=f"{method} {group} {seed}",
        )
        for (method, group), hits in back.items()
        for seed in range(3)
    ]  # fmt: skip
    wanted = Wanted(about="", methods=["kpop", "esd"], compare=[("kpop", "esd")])
    records = summary.placed(finishes)
    return records, summary.summarised(wanted, finishes, records)


FORGED = {
    "kpop attack: p4d (k 3), doubled - plain dsr has verdict 'saturated': expected 'not saturated'": (
        ("kpop", CHANGE), {"verdict": "saturated"},
    ),
    "kpop attack: p4d (k 3), doubled - plain dsr is 0: expected -45.000, as its two rows are apart": (
        ("kpop", CHANGE), {"value": 0.0, "low": -1.0, "high": 1.0, "verdict": "saturated"},
    ),
    "kpop attack: p4d (k 3), doubled - plain dsr has equal_quality True: expected None": (
        ("kpop", CHANGE), {"equal_quality": True},
    ),
    "kpop - esd attack: p4d (k 3) dsr has verdict 'lower': expected": (("kpop - esd", PLAIN), {"verdict": "lower"}),
    "kpop - esd attack: p4d (k 3) dsr has equal_quality True: expected None": (
        ("kpop - esd", PLAIN), {"equal_quality": True},
    ),
    "kpop - esd attack: p4d (k 3) dsr has n 1200: expected 360": (("kpop - esd", PLAIN), {"n": 1200}),
    "kpop - esd attack: p4d (k 3) dsr has training_seeds 9: expected 3": (("kpop - esd", PLAIN), {"training_seeds": 9}),
    "spm attack: p4d (k 3), doubled - plain dsr has no two rows": (("kpop", CHANGE), {"method": "spm"}),
}  # fmt: skip


@pytest.mark.parametrize("message", FORGED)
def test_what_is_said_of_a_difference_is_told_again(message):
    records, whole = attacked()
    assert retold(records, whole) == (3, 2, 0, "")
    (method, group), changes = FORGED[message]
    forged = [{**row, **changes} if (row["method"], row["group"]) == (method, group) else row for row in whole]
    assert retold(records, forged).problem.startswith(message)


def test_a_difference_of_rows_that_splits_share_is_told_again(tmp_path):
    """The others' images are the same on both splits for both rows: a difference has them once, and no other count holds."""
    two = tmp_path / "two.csv"
    two.write_text("prompt,sd_seed,label\na rose,7,rose\na bus,8,bus\n")
    grid = {"method": ["original", "original in float16"], "split": ["a", "b"], "seed": [0]}
    changes = {"grid": grid, "image_dtype": "float32", "others": {"set": str(two), "count": 1}}
    plan = tiny_plan(tmp_path, **changes, compare=[["original in float16", "original"]])
    assert main([*bench_words(plan), "--quiet"]) == 0
    records, rows = (read_rows(tmp_path / "out" / f"{name}.jsonl") for name in ("records", "summary"))
    (shared,) = [
        r for r in rows if r["method"].endswith(" - original") and (r["group"], r["metric"]) == ("others", "psr@1")
    ]
    (own,) = [r for r in rows if (r["method"], r["group"], r["metric"]) == ("original", "others", "psr@1")]
    assert shared["n"] < 2 * own["n"]
    assert retold(records, rows).problem == ""
    shared["n"] = 3 * own["n"]
    assert "has n" in retold(records, rows).problem


@pytest.mark.parametrize(("seconds", "problem"), [(40.0, ""), (29.0, "has erase_seconds 29.0: expected 30.0 or more")])
def test_an_erasure_may_have_taken_longer_on_another_machine(seconds, problem):
    """Whose results were carried here: what the summary says is of the erasures that the store has."""
    records, rows = kept("kpop-fig5")
    erasures = [
        r["provenance"] for r in records if r["provenance"]["method"] == "lambda=1" and r["provenance"]["made_by"]
    ]
    took: dict[tuple[str, ...], float] = {}
    for erasure in erasures:
        quick = took.setdefault(tuple(erasure["edits"]), 30.0 + 100.0 * len(took))
        steps = erasure["made_by"]
        erasure["made_by"] = [{**step, "seconds": quick / len(steps)} for step in steps]
    assert len(took) > 1
    told = [{**row, "erase_seconds": seconds} if row["method"] == "lambda=1" else row for row in rows]
    found = retold(records, told).problem
    assert problem in found
    assert bool(found) is bool(problem)
