"""A contribution is checked against a committed plan: what is whole passes, and whatever is wrong is named in one line."""

import json
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.executors import bench, rerun, submission
from expunge.judges.testbed import Testbed
from expunge.metrics.esr_psr import EsrPsr
from expunge.plans.read import read_plan
from expunge.results import summary
from plans_of import bench_words, read_rows, tiny_plan, tiny_set

CLAIM = {"says": "KPOP erases more", "source": "Table 2", "rows": ["kpop", "uce"]}
GRID = {
    "grid__method": ["original", "uce", "kpop"],
    "grid__split": ["a", "b"],
    "compare": [["kpop", "uce"]],
    "count": 2,
}
ON_SD = {"about": "For Stable Diffusion.", "count": 9}
BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def keeping(monkeypatch):
    """`benchmarks/keep.py`, which keeps results beside their plan."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import keep

    return keep


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A committed plan in a folder of its own, its results, and the store that they were made in."""
    place = tmp_path_factory.mktemp("submission")
    (place / "plans").mkdir()
    tiny_set(place / "three.toml")
    plan = tiny_plan(place / "plans", set=str(place / "three.toml"), claims=[CLAIM], on={"sd": ON_SD}, **GRID)
    (place / "plans" / "three.toml").unlink()  # which `tiny_plan` puts beside, and plans stand alone
    store, out = place / "store", place / "plan"
    words = ["bench", str(plan), "--store", str(store), "--out", str(out), "--workers", "1", "--quiet"]
    assert main(words) == 0
    return SimpleNamespace(place=place, plans=place / "plans", plan=plan, store=store, out=out)


@pytest.fixture
def copy(ran, tmp_path):
    """The results once more, to be spoiled."""
    return Path(shutil.copytree(ran.out, tmp_path / "plan"))


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def spoiled(folder, name, change):
    """Change the lines of a file; ``change`` is given them all."""
    rows = read_rows(folder / name)
    change(rows)
    write_rows(folder / name, rows)


def record(rows, method="kpop", metric="esr@1", group="set"):
    return next(
        r for r in rows if (r["provenance"]["method"], r["metric"], r["provenance"]["group"]) == (method, metric, group)
    )


def number(rows, method="kpop", metric="esr@1", group="set"):
    return next(
        r for r in rows if (r["method"], r["metric"], r["group"]) == (method, metric, group) and "claim" not in r
    )


# what is whole --------------------------------------------------------------------------------------------------------
def test_whole_results_pass_and_are_written_in_the_layout_of_benchmarks(ran, keeping, tmp_path, capsys):
    out = tmp_path / "sent"
    assert main(["submit", str(ran.out), "--against", str(ran.plans), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["plan"], said["added"], said["compared"]) == ("plan", [], ["plan"])
    assert sorted(file.name for file in out.iterdir()) == ["plan.jsonl", "plan.md"]
    (tmp_path / "kept").mkdir()
    for file in keeping.keep(ran.out, "plan", tmp_path / "kept"):
        assert file.read_bytes() == (out / file.name).read_bytes(), "`make bench-NAME` keeps the same"
    assert '": ' not in (out / "plan.jsonl").read_text().splitlines()[0], "no blanks"
    assert (out / "plan.md").read_text() == (ran.out / "table.md").read_text()
    assert len(read_rows(out / "plan.jsonl")) < len(
        [*read_rows(ran.out / "records.jsonl"), *read_rows(ran.out / "summary.jsonl")]
    )
    bench.again(read_plan(ran.plan), out / "plan.jsonl", tmp_path / "again")
    assert (tmp_path / "again" / "table.md").read_text() == (out / "plan.md").read_text()
    assert main(["submit", str(ran.out), "--against", str(ran.plans), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_cannot_be_kept_is_refused_and_nothing_is_written(ran, keeping, monkeypatch, tmp_path):
    with pytest.raises(ExpungeError, match=r"has no records.jsonl, summary.jsonl, table.md: expected a finished run"):
        keeping.keep(tmp_path, "plan", tmp_path)
    monkeypatch.setattr(keeping, "LARGEST", 1_000)
    with pytest.raises(ExpungeError, match=r"plan.jsonl' would have [\d,]+ bytes: expected at most 1,000"):
        keeping.keep(ran.out, "plan", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_fresh_record_says_which_version_and_which_weights_measured_it(ran):
    said = record(read_rows(ran.out / "records.jsonl"))["provenance"]
    assert (said["version"], said["measured_by"]) == (EsrPsr.version, Testbed().identity())
    assert len(said["measured_by"]) == 64


def test_rows_may_be_added_and_their_plan_is_sent_along(ran, tmp_path):
    grid = {**GRID, "grid__method": [*GRID["grid__method"], "more"], "method__more": {"eraser": "uce"}}
    (tmp_path / "mine").mkdir()
    plan = tiny_plan(tmp_path / "mine", set=str(ran.place / "three.toml"), claims=[CLAIM], **grid)
    assert main([*bench_words(plan), "--store", str(ran.store), "--quiet"]) == 0
    found = submission.check(plan.parent / "out", ran.plans)
    assert (found.of.name, found.of.added) == ("plan", ["more"])
    files = submission.write(found, tmp_path / "sent")
    assert [file.name for file in files] == ["plan.jsonl", "plan.md", "plan.toml"]
    assert read_plan(files[2]) == read_plan(plan)
    assert submission.check(plan.parent / "out", tmp_path / "sent").of.added == []
    sent, committed = (tomllib.loads(file.read_text()) for file in (files[2], ran.plan))
    assert sent["on"] == committed["on"], "what the committed plan says of other models stays"
    assert "format" not in sent


def test_claims_may_be_added_alone_and_their_plan_is_sent_along(ran, tmp_path):
    more = [CLAIM, {**CLAIM, "says": "KPOP keeps more", "metric": "psr@1"}]
    (tmp_path / "mine").mkdir()
    plan = tiny_plan(tmp_path / "mine", set=str(ran.place / "three.toml"), claims=more, **GRID)
    assert main([*bench_words(plan), "--store", str(ran.store), "--quiet"]) == 0
    found = submission.check(plan.parent / "out", ran.plans)
    assert (found.of.added, found.of.more) == ([], ["1 of claims"])
    assert "the plan is 'plan'; it has more: 1 of claims" in list(found.in_words())
    files = submission.write(found, tmp_path / "sent")
    assert [file.name for file in files] == ["plan.jsonl", "plan.md", "plan.toml"]
    assert read_plan(files[2]).claims == read_plan(plan).claims


def test_several_measurements_of_the_same_images_and_splits_that_overlap_pass(tmp_path):
    """After each of two targets; and what is kept in two splits, which a row counts once and a difference twice."""
    (tmp_path / "plans").mkdir()
    tiny_set(tmp_path / "three.toml")
    grid = {"grid__split": ["a", "b"], "method__uce__order": "sequential", "method__uce__retain": False}
    plan = tiny_plan(
        tmp_path / "plans", set=str(tmp_path / "three.toml"), compare=[["uce", "original"]], count=2, **grid
    )
    (tmp_path / "plans" / "three.toml").unlink(missing_ok=True)
    assert main([*bench_words(plan), "--quiet"]) == 0
    records = read_rows(plan.parent / "out" / "records.jsonl")
    assert any(r["provenance"]["group"].startswith("after") for r in records)
    assert submission.check(plan.parent / "out", tmp_path / "plans").of.name == "plan"


def test_with_the_store_all_is_told_again_and_jobs_are_run_again(ran, capsys):
    words = ["submit", str(ran.out), "--against", str(ran.plans), "--store", str(ran.store)]
    assert main([*words, "--rerun", "3"]) == 0
    said = capsys.readouterr().out
    assert "from the store, bit for bit" in said
    assert said.count("the same numbers, bit for bit") == 3
    assert main([*words, "--rerun", "1000"]) == 2
    assert "expected 1 to" in capsys.readouterr().err


# what is wrong --------------------------------------------------------------------------------------------------------
PLANS = {
    "count is 3: expected 2": {"count": 3},
    "grid.seed is [0, 1]: expected [0]": {
        "grid": {"method": GRID["grid__method"], "split": ["a", "b"], "seed": [0, 1]}
    },
    "grid.method lacks 'kpop'": {"grid": {"method": ["original", "uce"], "split": ["a", "b"], "seed": [0]}},
    "is in the order": {"grid": {"method": ["uce", "original", "kpop"], "split": ["a", "b"], "seed": [0]}},
    "method.uce is another": {"method": {"uce": {"eraser": "uce"}, "kpop": {"eraser": "kpop"}}},
    "compare lacks": {"compare": []},
    "claims lacks": {"claims": []},
    "model is 'other'": {"model": "other"},
    "unknown entry": {"surprise": 1},
}


@pytest.mark.parametrize("message", PLANS)
def test_another_plan_is_refused_by_what_it_says_otherwise(message, ran, copy):
    kept = json.loads((copy / "plan.json").read_text())
    (copy / "plan.json").write_text(json.dumps({**kept, **PLANS[message]}))
    with pytest.raises(ExpungeError) as caught:
        submission.check(copy, ran.plans)
    assert message in str(caught.value) or message == "unknown entry"
    assert message != "unknown entry" or "surprise" in str(caught.value)


def value(place, value):
    """A change of the first record of KPOP's ESR-1, at a path of names."""

    def change(rows):
        at = record(rows)
        for name in place[:-1]:
            at = at[name]
        if value is None:
            del at[place[-1]]
        else:
            at[place[-1]] = value

    return change


RECORDS = {
    "has no 'model_sha256'": value(["provenance", "model_sha256"], None),
    "has no 'made_by'": value(["provenance", "made_by"], None),
    "has no 'templates'": value(["knowledge", "templates"], None),
    "does not say all that its method was told": value(["knowledge", "random_texts"], None),
    "files have the hash 82d62abe815f6798": value(["provenance", "model_sha256"], "82d62abe815f6798" + "0" * 48),
    "is of the model 'mine'": value(["model"], "mine"),
    "expected 0 to 100": lambda rows: record(rows).update(value=101.0, high=102.0),
    "outside of its interval": lambda rows: record(rows).update(value=50.0, low=60.0, high=70.0),
    "is of 0 images": value(["n"], 0),
    "expected 4 with 2, as the plan asks for": value(["n"], 3),
    "is esr-psr of the images 'generate-0000": value(["provenance", "images"], "generate-" + "0" * 24 + "/images"),
    "is of 'mine', split a, training seed 0, set": value(["provenance", "method"], "mine"),
    "was measured by version 9 of esr-psr: expected 1": value(["provenance", "version"], 9),
    "was measured by weights told by '000000'": value(["provenance", "measured_by"], "000000"),
    "'measured_by' is '5': expected str": value(["provenance", "measured_by"], 5),
    "training seed 7": value(["provenance", "training_seed"], 7),
    "the subject original": value(["subject"], "original"),
    "once more": lambda rows: rows.append(record(rows)),
    "has no record of 'kpop', split b, training seed 0, key: own": lambda rows: rows.remove(
        next(r for r in rows if r["provenance"]["group"] == "key: own" and r["provenance"]["split"] == "b")
    ),
}


@pytest.mark.parametrize("message", RECORDS)
def test_a_record_that_is_not_whole_or_not_the_plan_s_is_refused(message, ran, copy):
    if "key: own" in message:  # all records of that place
        rows = read_rows(copy / "records.jsonl")
        gone = lambda p: (p["group"], p["split"]) == ("key: own", "b")  # noqa: E731
        write_rows(copy / "records.jsonl", [r for r in rows if not gone(r["provenance"])])
    else:
        spoiled(copy, "records.jsonl", RECORDS[message])
    with pytest.raises(ExpungeError) as caught:
        submission.check(copy, ran.plans)
    assert message in str(caught.value)


def turned(row):
    """Another value that the unit has, with an interval that holds it."""
    row.update(value=25.0, low=0.0, high=100.0)


SUMMARIES = {
    "as its records give": lambda rows: turned(number(rows)),
    "expected 8, as its records say": lambda rows: number(rows).update(n=800),
    "expected Wilson's of 8 images": lambda rows: number(rows).update(
        low=number(rows)["value"], high=number(rows)["value"]
    ),
    "training_seeds: expected 1": lambda rows: number(rows).update(training_seeds=3),
    "splits: expected 2": lambda rows: number(rows).update(splits=9),
    "has told 'nothing'": lambda rows: number(rows, "uce").update(told="nothing"),
    "has erase_equivalents 1.0": lambda rows: number(rows).update(erase_equivalents=1.0),
    "has erase_seconds 0.0": lambda rows: number(rows).update(erase_seconds=0.0),
    "what targets became": lambda rows: rows.remove(number(rows, metric="became")),
    "as its two rows are apart": lambda rows: turned(number(rows, "kpop - uce")),
    "and not in the summary": lambda rows: rows.remove(number(rows, metric="psr@1")),
    "has no record behind it": lambda rows: rows.append({**number(rows), "metric": "esr@9"}),
    "has no 'method'": lambda rows: rows[0].pop("method"),
    "is not what its summary's numbers give": lambda rows: rows[-1].update(claim_verdict="holds"),
}


@pytest.mark.parametrize("message", SUMMARIES)
def test_a_summary_that_is_not_its_records_is_refused(message, ran, copy):
    spoiled(copy, "summary.jsonl", SUMMARIES[message])
    with pytest.raises(ExpungeError) as caught:
        submission.check(copy, ran.plans)
    assert message in str(caught.value)


def test_a_table_that_was_edited_is_refused(ran, copy):
    page = (copy / "table.md").read_text()
    (copy / "table.md").write_text(page.replace("| kpop |", "| **kpop** |", 1))
    with pytest.raises(ExpungeError, match=r"table.md' is not what its summary's numbers give: line \d+ is '. ..kpop"):
        submission.check(copy, ran.plans)


def test_a_widened_interval_passes_the_records_and_not_the_store(ran, copy, tmp_path):
    """Bootstrapped limits are not in the records: only the values behind them tell."""
    spoiled(copy, "summary.jsonl", lambda rows: number(rows).update(low=number(rows)["low"] - 1))
    wants = submission.wanted(submission.checked(read_plan(ran.plan)))
    summary.write_again(wants, copy / "summary.jsonl", tmp_path / "again")
    for name in ("summary.jsonl", "table.md"):
        shutil.copy(tmp_path / "again" / name, copy / name)
    found = submission.check(copy, ran.plans)
    with pytest.raises(ExpungeError, match=r"summary.jsonl' line \d+ \(esr@1\) has another low than its job"):
        rerun.told_from_store(found, ran.store)


def test_numbers_that_their_jobs_do_not_give_are_found_by_running_them_again(ran, tmp_path):
    """Every measurement of a store whose results were made up: whichever is drawn, its numbers are others."""
    store = Path(shutil.copytree(ran.store, tmp_path / "store"))
    for file in store.glob("measure-*/result.json"):
        result = json.loads(file.read_text())
        for one in result["records"]:
            worse = 100.0 if one["value"] < 50 else 0.0
            one.update(value=worse, low=worse, high=worse)
        file.write_text(json.dumps(result))
    found = submission.check(ran.out, ran.plans)
    assert all(one.same for one in rerun.run_again(found, ran.store, 1))
    with pytest.raises(ExpungeError, match=r"run again, .* expected it within the reported interval"):
        rerun.run_again(found, store, 1)


def test_bad_input_is_one_line(ran, copy, tmp_path, capsys):
    (copy / "records.jsonl").write_text(
        (copy / "records.jsonl").read_text().replace('"value": ', '"value": NaN, "x": ', 1)
    )
    (tmp_path / "empty").mkdir()
    for words, message in (
        (
            [str(tmp_path / "none"), "--against", str(ran.plans)],
            "has no plan.json: expected a folder that `expunge bench` wrote",
        ),
        ([str(copy), "--against", str(ran.plans)], "records.jsonl' line 1 is damaged"),
        ([str(ran.out), "--against", str(tmp_path / "empty")], "holds no plans"),
        ([str(ran.out), "--against", str(ran.plans), "--plan", "plam"], "did you mean 'plan'"),
        ([str(ran.out), "--against", str(ran.plans), "--rerun", "1"], "--rerun 1: expected 1 or more, and --store"),
        ([str(ran.out), "--against", str(ran.plans), "--store", str(tmp_path / "empty")], "has no result"),
    ):
        assert main(["submit", *words, "--out", str(tmp_path / "sent")]) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "sent").exists()
