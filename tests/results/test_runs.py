"""From a plan's metrics to its rows, its claims and its table, in one real run."""

import json
import shutil
from pathlib import Path

import pytest

from expunge.cli import main
from plans_of import bench_words, changed, read_rows, tiny_plan, tiny_set, toml, written

METRICS = [
    "esr-psr",
    {"name": "esr-psr", "judge": "testbed:network=b"},
    {"name": "fid", "minimum": 2},
    "prior-distance",
    "clip-score",
    "dsr",
    "ner",
]
SHOWN = ("method", "group", "metric")


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """The plan of a finished run, UCE against the original by many metrics on two splits, with ``out`` beside it."""
    folder = tmp_path_factory.mktemp("measured")
    crown = {"concepts": ["church", "dog", "radio", "crown"], "dev__prompts__crown": ["a crown"]}
    others = tiny_set(folder / "four.toml", **crown, test__prompts__crown=["a crown"])
    plan = tiny_plan(
        folder,
        grid__split=["a", "b"],
        count=2,
        steps=8,
        metrics=METRICS,
        by_split=True,
        others={"set": str(others), "count": 2},
        claims=[{"says": "UCE keeps as much", "rows": ["uce", "original"], "metric": "psr@1", "expected": "equal"}],
        compare=[["uce", "original"]],
    )
    assert main(bench_words(plan, "--quiet")) == 0
    return plan


def rows_of(plan):
    return read_rows(plan.parent / "out" / "summary.jsonl")


def table_of(plan):
    return (plan.parent / "out" / "table.md").read_text()


def by_name(rows):
    return {tuple(r[name] for name in SHOWN): r for r in rows if set(SHOWN) <= set(r)}


def test_numbers_of_images_in_pairs_move_with_their_interval(measured):
    by = by_name(rows_of(measured))
    own, edited, moved = (by[m, "set", "prior_distance"] for m in ("original", "uce", "uce - original"))
    assert own["value"] > 1, "two seeds are two images"
    assert moved["value"] == pytest.approx(edited["value"] - own["value"], abs=0.01)
    assert moved["low"] <= moved["value"] <= moved["high"]
    assert "prior_distance" in table_of(measured)


def test_numbers_of_sets_and_of_images_go_from_a_plan_to_its_table(measured):
    rows, by = rows_of(measured), by_name(rows_of(measured))
    names = {r["metric"] for r in rows if r["method"] == "uce"}
    assert names >= {"fid_testbed (minimum 2)", "clip_testbed_erased", "clip_testbed_kept", "dsr"}
    assert any(name.startswith("ner@0.5") for name in names)
    records = [
        r
        for r in read_rows(measured.parent / "out" / "records.jsonl")
        if (r["metric"], r["provenance"]["method"], r["provenance"]["group"]) == ("fid_testbed", "uce", "set")
    ]
    row = by["uce", "set", "fid_testbed (minimum 2)"]
    assert len(records) == 2, "a split each"
    assert row["value"] == pytest.approx(sum(r["value"] for r in records) / 2, abs=1e-3)
    ends = min(r["low"] for r in records), max(r["high"] for r in records)
    assert (row["low"], row["high"]) == pytest.approx(ends, abs=1e-3)
    assert by["original", "set", "fid_testbed (minimum 2)"]["value"] > 0, "its own images on other seeds"
    assert ("uce - original", "set", "dsr") in by, "images are paired"
    assert ("uce - original", "set", "fid_testbed (minimum 2)") not in by, "sets are not"
    assert "fid_testbed" in table_of(measured)


def test_two_judges_are_two_columns_and_others_are_measured(measured):
    by = by_name(rows_of(measured))
    for metric in ("esr@1", "esr@1 (judge testbed:network=b)"):
        assert by["uce", "set", metric]["n"] == 2 * 2 * 2, "two targets on each of two splits, two images each"
    assert by["uce", "others", "psr@1"]["n"] == 2 * 2, "the one concept that is not the plan's own, on each split"
    assert by["uce", "set", "became"]["n"] == 2 * 2 * 2


def test_numbers_of_each_split(measured):
    rows = rows_of(measured)
    records = read_rows(measured.parent / "out" / "records.jsonl")
    alone = {r["group"]: r for r in rows if (r["method"], r["metric"]) == ("uce", "psr@1") and "verdict" not in r}
    assert (alone["split: a"]["n"], alone["split: b"]["n"], alone["set"]["n"]) == (2, 2, 4)
    assert sum(alone[f"split: {split}"]["value"] for split in "ab") / 2 == alone["set"]["value"]

    def of(judge):
        return {
            (r["provenance"]["method"], f"split: {r['provenance']['split']}", r["metric"]): r["value"]
            for r in records
            if r["provenance"]["group"] == "set" and r["provenance"]["settings"].get("judge", "testbed") == judge
        }

    plain = {r["metric"] for r in records}
    apart = {k: r["value"] for k, r in by_name(rows).items() if k[1].startswith("split: ") and k[2] in plain}
    assert {name: of("testbed")[name] for name in apart} == pytest.approx(apart, abs=1e-3)
    assert any(apart[m, "split: a", n] != apart[m, "split: b", n] for m, g, n in apart if g == "split: a")
    assert "By split" in table_of(measured)
    assert "| uce, b |" in table_of(measured)
    assert {r["method"] for r in rows if r["metric"] == "detections"} == {"original", "uce"}


@pytest.fixture
def again(measured, tmp_path):
    """The run's results in one file, its plan with another claim and a histogram, and the command that judges them anew."""
    plan = tmp_path / "plan.toml"
    claim = {"says": "UCE erases less", "rows": ["uce", "original"], "metric": "esr@1", "expected": "lower"}
    lines = [line for line in measured.read_text().splitlines() if not line.startswith("claims")]
    lines.append(f"claims = {toml([{**claim, 'source': 'Table 9'}])}")
    lines.append(f"histograms = {toml([{'title': 'kinds', 'rows': ['original']}])}")
    plan.write_text("\n".join(lines) + "\n")
    out, kept = measured.parent / "out", tmp_path / "kept.jsonl"
    kept.write_text((out / "records.jsonl").read_text() + (out / "summary.jsonl").read_text())
    words = ["bench", plan, "--results", kept, "--out", tmp_path / "again"]
    return [str(word) for word in words]


def test_claims_are_judged_again_without_the_store(measured, again, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(again) == 0
    assert not (tmp_path / "runs").exists(), "nothing was run"
    told, table = (tmp_path / "again" / "table.md").read_text(), table_of(measured)
    assert "Table 9" in told
    assert "Table 9" not in table
    assert told[: told.index("Claims")] == table[: table.index("Claims")]
    (claim,) = [r for r in read_rows(tmp_path / "again" / "summary.jsonl") if "claim" in r]
    paired = by_name(rows_of(measured))["uce - original", "set", "esr@1"]
    assert (claim["value"], claim["low"], claim["high"]) == (paired["value"], paired["low"], paired["high"])
    assert claim["claim_verdict"] != "not measured"
    records = read_rows(measured.parent / "out" / "records.jsonl")
    counts = {r["method"]: r["counts"] for r in rows_of(measured) if (r["metric"], r["group"]) == ("detections", "set")}
    halves = [r for r in records if (r["provenance"]["method"], r["metric"]) == ("original", "ner@0.5")]
    assert sum(counts["original"].values()) == sum(round(r["value"] * r["n"] / 100) for r in halves) > 0
    figures = tmp_path / "again" / "figures"
    assert (figures / "kinds.json").is_file()
    assert read_rows(tmp_path / "again" / "records.jsonl") == records
    (figures / "stale.json").write_text("{}")
    assert main(again) == 0, "judged again after a claim was changed"
    assert not (figures / "stale.json").exists()
    assert main([*again[:-2], "--quiet"]) == 0
    assert (tmp_path / "runs" / "bench" / "plan-again" / "table.md").is_file()


def test_results_that_are_no_rows_of_the_plan_are_refused(measured, again, tmp_path, capsys):
    lines, kept = rows_of(measured), tmp_path / "kept.jsonl"

    def of_uce(**changes):
        return [{**r, **changes} if r["method"] == "uce" else r for r in lines]

    for bad, expected in (
        ([], "has no row of 'original'"),
        (of_uce(method="ecu"), f"unknown method of the grid in '{kept}' 'ecu'"),
        (of_uce(group="weapons_close"), f"unknown set of the plan in '{kept}' 'weapons_close'"),
        ([r for r in lines if r["method"] not in ("uce", "original")], "has no row of 'original'"),
        *(
            (
                [{k: v for k, v in r.items() if k != name} for r in lines],
                f"has no {name}: expected rows as this version",
            )
            for name in ("group", "value", "n", "counts")
        ),
        ([{**r, "method": r["method"].replace("- original", "- kpop")} for r in lines], "method of the grid"),
    ):
        kept.write_text("".join(json.dumps(r) + "\n" for r in bad))
        assert main(again) == 2, expected
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "again").exists(), "nothing was written"
    kept.write_text("".join(json.dumps(r) + "\n" for r in lines if r["method"] == "original"))
    assert main([*again[:-1], str(tmp_path / "fewer")]) == 0, "a plan may have been given a row since"
    assert (tmp_path / "fewer" / "table.md").read_text().endswith("\nNot measured yet: uce.\n")
    assert main([*again, "--dry-run"]) == 2
    assert "with --dry-run and --results: expected one" in capsys.readouterr().err
    for words in (
        *(["--ray", "local"], ["--shared", "s3://bucket/path"], ["--workers", "2"], ["--device", "cpu"]),
        *(["--store", str(tmp_path / "store")], ["--changed"], ["--watched"]),
    ):
        assert main([*again[:-1], str(tmp_path / "none"), *words]) == 2
        error = capsys.readouterr().err
        assert f"bench with --results and {words[0]}: expected one of them" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()
    kept.write_text("".join(json.dumps(r) + "\n" for r in lines))
    shutil.copytree(measured.parent / "out", tmp_path / "out")
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    assert main([*again[:-1], str(tmp_path / "out")]) == 2
    assert "holds the results of a run: expected another --out" in capsys.readouterr().err
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before


def test_a_class_is_measured_on_further_prompts_beside_the_papers_figures(tmp_path, capsys):
    prompts = {"animal": ["a dog", "a fish"], "weapon": ["a bomb"]}
    animals = {"about": "A class.", "concepts": ["animal", "weapon"], "dev": {"seed": 1, "prompts": prompts}}
    written(tmp_path / "class.toml", changed(animals, {"test": {"seed": 9, "prompts": prompts}}))
    published = {"table": "Table 9", "method": "UCE", "metric": "esr@1", "value": 87.6, "source": "somewhere"}
    (tmp_path / "paper.jsonl").write_text(json.dumps(published) + "\n")
    also = {"set": str(tiny_set(tmp_path / "three.toml")), "count": 2, "metrics": [{"name": "esr-psr", "ks": [3]}]}
    plan = tiny_plan(
        tmp_path,
        set=str(tmp_path / "class.toml"),
        grid={"method": ["uce"]},
        method__uce__retain=["radio"],
        words={"animal": ["dog", "fish"], "weapon": "bomb"},
        splits={"all": "animal"},
        also=[also],
        paper={"file": str(tmp_path / "paper.jsonl"), "rows": {"uce": ["Table 9", "UCE"]}},
    )
    assert main(bench_words(plan, "--json")) == 0
    by = by_name(json.loads(capsys.readouterr().out)["summary"])
    assert by["uce", "set", "esr@1"]["n"] == 2
    assert by["uce", "three", "psr@3 (ks [3])"]["n"] == 2 * 2
    assert by["uce", "three", "esr@3 (ks [3])"]["n"] == 2, "a word that was erased is no kept concept"
    assert by["uce", "paper", "esr@1"]["value"] == 87.6
    head, _, row = table_of(plan).split("\n\n")[1].splitlines()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["paper esr@1"] == "87.6"
    assert "three psr@3 (ks [3])" in cells
