"""Plans end to end on the testbed: three concepts, an image each."""

import json
import random
import re
import resource
import subprocess
import sys
import time

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.erasers.kpop import KPOP
from expunge.settings.layers import filled
from expunge.stages import bench, jobs
from expunge.stages.plan import read_plan
from expunge.stages.planner import Planner, flattened

SET = """
about = "Three objects."
concepts = ["church", "dog", "radio"]
[splits]
a = ["church", "dog"]
b = ["dog", "radio"]
c = ["radio"]
[dev]
seed = 1
[dev.prompts]
church = ["a church"]
dog = ["a dog"]
radio = ["a radio"]
[test]
seed = 9
[test.prompts]
church = ["image of a church"]
dog = ["image of a dog"]
radio = ["image of a radio"]
"""
PLAN = """
about = "A small plan."
set = "{set}"
count = 1
control_count = 1
compare = [["kpop", "uce"]]
claims = [{{ says = "UCE keeps as much", rows = ["uce", "original"], metric = "psr@1", expected = "equal" }}]

[grid]
method = ["original", "uce", "kpop"]
split = ["a"]
seed = [0, 1]

[method.uce]
eraser = "uce"
retain = true

[method.kpop]
eraser = "kpop"
controls = ["own", "random"]
preset = false
settings = {{ iterations = 2, lr = 1e-3, prompt_lr = 0.1, sampling = {{ sampling_steps = 2 }} }}
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "three.toml").write_text(SET)
    file = tmp_path / "plan.toml"
    file.write_text(PLAN.format(set=tmp_path / "three.toml"))
    return file


def test_the_original_in_another_precision_is_a_row_and_a_scale(plan, tmp_path):
    text = plan.read_text().replace('"original", "uce", "kpop"', '"original", "original in float32"')
    text = text.replace("count = 1\n", 'image_dtype = "bfloat16"\ncount = 1\n', 1)
    text = re.sub(r"(?m)^(claims|compare) = .*", "", text).replace(
        "count = 1\n", "metrics = ['prior-distance']\ncount = 1\n", 1
    )
    plan.write_text(text + "\n")
    measured = Planner(read_plan(plan)).planned()
    own, precise = (next(m for m in measured if m.method == n) for n in ("original", "original in float32"))
    image, against = precise.upstream
    assert (image.job["dtype"], image.job["edits"]) == ("float32", [])
    assert against.key == own.upstream[0].key, "on equal seeds"
    assert own.upstream[1].job["seed"] != own.upstream[0].job["seed"], "on other seeds"
    plan.write_text(text.replace("in float32", "in float31"))
    with pytest.raises(ExpungeError, match="did you mean 'float32'"):
        Planner(read_plan(plan)).planned()


def test_a_metric_that_compares_gets_the_original_s_images_and_other_seeds_for_the_original(plan, tmp_path):
    text = plan.read_text().replace("control_count = 1", 'control_count = 1\nmetrics = ["esr-psr", "prior-distance"]')
    plan.write_text(text.replace('[["kpop", "uce"]]', '[["uce", "original"]]').replace(', "kpop"]', "]"))
    planned = [p for p in Planner(read_plan(plan)).planned() if p.job["metric"] == "prior-distance"]
    images = {p.method: p.job["images"] for p in planned}
    against = {p.method: p.job["reference"] for p in planned}
    assert against["uce"] == images["original"] != against["original"]
    assert main(words(plan, tmp_path, "--quiet")) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "summary.jsonl").read_text().splitlines()]
    by = {(r["method"], r["metric"]): r for r in rows}
    assert by["original", "prior_distance"]["value"] > 1, "two seeds are two images"
    moved = by["uce - original", "prior_distance"]
    expected = by["uce", "prior_distance"]["value"] - by["original", "prior_distance"]["value"]
    assert moved["value"] == pytest.approx(expected, abs=0.01)
    assert moved["low"] <= moved["value"] <= moved["high"]
    assert "prior_distance" in (tmp_path / "out" / "table.md").read_text()


def test_numbers_of_sets_and_of_images_go_from_a_plan_to_its_table(plan, tmp_path):
    metrics = """metrics = [{ name = "fid", minimum = 2 }, "clip-score", "dsr", { name = "ner", thresholds = [0.5] }]"""
    text = (
        plan.read_text()
        .replace("control_count = 1", f"control_count = 1\n{metrics}")
        .replace("count = 1", "count = 2", 1)
    )
    plan.write_text(text.replace('[["kpop", "uce"]]', '[["uce", "original"]]').replace(', "kpop"]', "]"))
    assert main(words(plan, tmp_path, "--quiet")) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "summary.jsonl").read_text().splitlines()]
    names = {r["metric"] for r in rows if r["method"] == "uce"}
    assert names >= {"fid_testbed (minimum 2)", "clip_testbed_erased", "clip_testbed_kept", "dsr"}
    assert any(name.startswith("ner@0.5") for name in names)
    by = {(r["method"], r["metric"]): r for r in rows}
    record = next(
        r
        for r in map(json.loads, (tmp_path / "out" / "records.jsonl").read_text().splitlines())
        if (r["metric"], r["provenance"]["method"]) == ("fid_testbed", "uce")
    )
    row = by["uce", "fid_testbed (minimum 2)"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx(
        (record["value"], record["low"], record["high"]), abs=1e-3
    )
    assert by["original", "fid_testbed (minimum 2)"]["value"] > 0, "its own images on other seeds"
    assert "uce - original" in {r["method"] for r in rows if r["metric"] == "dsr"}, "images are paired"
    assert ("uce - original", "fid_testbed (minimum 2)") not in by, "sets are not"
    assert "fid_testbed" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("eraser", "settings"), [("few-shot", "{}"), ("ca", "{ group = 'embedding', anchor = 'cat' }")]
)
def test_a_plan_takes_methods_whose_groups_are_not_the_denoiser_s(plan, eraser, settings):
    text = plan.read_text().replace('eraser = "uce"\nretain = true', f'eraser = "{eraser}"\nsettings = {settings}')
    plan.write_text(text)
    planned = Planner(read_plan(plan)).planned()
    assert eraser in {u.job.get("eraser") for p in flattened(planned) for u in p.upstream}


def words(plan, tmp_path, *more):
    return ["bench", str(plan), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), *more]


def numbers(folder):
    """What a run found: everything in its records but how long it took."""
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for row in rows:
        for made in row["provenance"]["made_by"]:
            del made["seconds"]
    return rows


def test_a_plan_runs_once_and_only_what_is_missing(plan, tmp_path, capsys):
    every = '["none", "own", "random", "other", "neutral", "original", "uce"]'
    plan.write_text(
        plan.read_text().replace('["own", "random"]', every).replace("count = 1", "memory = true\ncount = 1", 1)
    )
    assert main([*words(plan, tmp_path, "--dry-run", "--json")]) == 0
    foreseen = json.loads(capsys.readouterr().out)["total"]
    assert foreseen["waiting"] == foreseen["jobs"] > 0
    assert main([*words(plan, tmp_path, "--json")]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    rows = numbers(tmp_path / "out")
    assert {r["subject"] for r in rows} == {"original", "edited", "recovered"}
    groups = {(r["provenance"]["method"], r["provenance"]["group"]) for r in rows}
    assert {("kpop", f"key: {c}") for c in ("none", "own", "random", "other", "neutral", "original", "uce")} <= groups
    by = {(r["method"], r["group"], r["metric"]): r for r in summary if "claim" not in r}
    assert by["kpop", "set", "esr@1"]["n"] == 2 * 2
    assert by["kpop", "set", "esr@1"]["training_seeds"] == 2
    assert by["original", "set", "esr@1"]["training_seeds"] == 1
    assert by["kpop - uce", "set", "psr@1"]["n"] == 2
    difference = by["kpop - uce", "set", "psr@1"]
    assert difference["value"] == by["kpop", "set", "psr@1"]["value"] - by["uce", "set", "psr@1"]["value"]
    assert (difference["verdict"] == "undecided") == (difference["low"] <= 0 <= difference["high"])
    assert by["kpop - uce", "set", "psr@1"]["equal_quality"] is None, "two images say nothing"
    assert ("kpop - uce", "key: own", "recovery") not in by, "UCE has no key"
    (claimed,) = [r for r in summary if "claim" in r]
    against = by["uce - original", "set", "psr@1"]
    assert [claimed[k] for k in ("value", "low", "high")] == [against[k] for k in ("value", "low", "high")]
    assert claimed["claim_verdict"] == "undecided", "a handful of images show no equality"
    assert "| UCE keeps as much |" in (tmp_path / "out" / "table.md").read_text()
    assert by["kpop", "set", "esr@1"]["erase_equivalents"] > 0
    assert by["kpop", "set", "esr@1"]["erase_peak_bytes"] > by["uce", "set", "esr@1"]["erase_peak_bytes"] > 1e5
    assert "erase_peak_bytes" not in by["original", "set", "esr@1"]
    edit = max((tmp_path / "store").glob("erase-*/edit.safetensors"), key=lambda f: f.stat().st_size)
    assert by["kpop", "set", "esr@1"]["artefact_bytes"] == pytest.approx(edit.stat().st_size, abs=100), (
        "all cross-attention, not K and V alone"
    )
    assert (by["uce", "set", "esr@1"]["told"], by["kpop", "set", "esr@1"]["told"]) == ("anchor, 1 kept", "anchor")
    assert "told" not in by["original", "set", "esr@1"]
    assert "| kpop |" in (tmp_path / "out" / "table.md").read_text()

    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")}
    assert main([*words(plan, tmp_path, "--quiet")]) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")} == made, "nothing is made twice"
    assert numbers(tmp_path / "out") == rows

    capsys.readouterr()
    assert main(["clean", "--store", str(tmp_path / "store"), "--room", "generate", "--json"]) == 0
    cleaned = json.loads(capsys.readouterr().out)
    assert cleaned["freed_bytes"] > 0
    assert main(["clean", "--store", str(tmp_path / "elsewhere"), "--room", "memory", "--quiet"]) == 0
    assert set(cleaned["rooms"]) == {"erase", "measure", "memory"}
    assert main([*words(plan, tmp_path, "--dry-run", "--json")]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["waiting"] == 0, "measured images are not made again"

    claimed = tmp_path / "out" / bench.PLAN
    claimed.write_text(json.dumps({k: v for k, v in json.loads(claimed.read_text()).items() if k != "also"}))
    assert main([*words(plan, tmp_path, "--quiet")]) == 0, "results of an expunge whose plans had fewer entries"

    plan.write_text(plan.read_text().replace("count = 1\n", "count = 2\n", 1))
    assert main(words(plan, tmp_path)) == 2
    assert "another text of this plan" in capsys.readouterr().err
    assert numbers(tmp_path / "out") == rows


def test_the_images_of_a_method_are_made_once_for_all_metrics(plan):
    plan.write_text(
        plan.read_text().replace(
            "count = 1\n", 'count = 1\nmetrics = ["esr-psr", {name = "esr-psr", judge = "testbed:network=b"}]\n', 1
        )
    )
    planned = flattened(Planner(read_plan(plan)).planned())
    rooms = [p.job["room"] for p in planned]
    assert rooms.count("erase") == 1 + 2, "a closed form has no training seeds"
    assert rooms.count("measure") == 2 * rooms.count("generate")
    assert all(json.loads(json.dumps(p.job)) == p.job for p in planned), "jobs are pure JSON"
    seen = set()
    for p in planned:
        assert all(u.key in seen for u in p.upstream)
        seen.add(p.key)


def test_numbers_of_each_split_and_claims_judged_again_without_the_store(plan, tmp_path, capsys, monkeypatch):
    text = (
        plan.read_text()
        .replace('split = ["a"]\nseed = [0, 1]', 'split = ["a", "b"]')
        .replace('"uce", "kpop"]', '"uce"]')
    )
    text = re.sub(r"(?m)^compare = .*", 'by_split = true\nmetrics = ["esr-psr", "ner"]', text)
    text = text.replace(text[text.index("[method.kpop]") :], "")
    plan.write_text(text)
    out = tmp_path / "out"
    assert main(["bench", str(plan), "--store", str(tmp_path / "store"), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "summary.jsonl").read_text().splitlines()]
    alone = {r["group"]: r for r in rows if (r["method"], r["metric"]) == ("uce", "psr@1") and "verdict" not in r}
    assert (alone["split: a"]["n"], alone["split: b"]["n"], alone["set"]["n"]) == (1, 1, 2)
    shown = [alone[f"split: {split}"]["value"] for split in "ab"]
    assert sum(shown) / 2 == alone["set"]["value"]
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    whole = {
        (r["provenance"]["method"], f"split: {r['provenance']['split']}", r["metric"]): r["value"] for r in records
    }
    apart = {
        (r["method"], r["group"], r["metric"]): r["value"] for r in rows if r.get("group", "").startswith("split: ")
    }
    assert {place: whole[place] for place in apart} == pytest.approx(apart, abs=1e-3)
    assert any(apart[m, "split: a", n] != apart[m, "split: b", n] for m, g, n in apart if g == "split: a")
    table = (out / "table.md").read_text()
    assert "By split" in table
    assert "| uce, b |" in table
    assert {r["method"] for r in rows if r["metric"] == "detections"} == {"original", "uce"}

    kept = tmp_path / "kept.jsonl"
    kept.write_text((out / "records.jsonl").read_text() + (out / "summary.jsonl").read_text())
    plan.write_text(
        text.replace('metric = "psr@1", expected = "equal"', 'metric = "esr@1", expected = "lower", source = "Table 9"')
        + "[[histograms]]\ntitle = 'kinds'\nrows = ['original']\n"
    )
    again, never = tmp_path / "again", tmp_path / "never"
    said = ["bench", str(plan), "--results", str(kept), "--store", str(never), "--out", str(again)]
    assert main(said) == 0
    assert not never.exists(), "nothing was run"
    told = (again / "table.md").read_text()
    assert "Table 9" in told
    assert "Table 9" not in table
    assert told[: told.index("Claims")] == table[: table.index("Claims")]
    judged = [json.loads(line) for line in (again / "summary.jsonl").read_text().splitlines()]
    (claim,) = [r for r in judged if "claim" in r]
    (paired,) = [r for r in rows if (r["method"], r["group"], r["metric"]) == ("uce - original", "set", "esr@1")]
    assert (claim["value"], claim["low"], claim["high"]) == (paired["value"], paired["low"], paired["high"])
    assert claim["claim_verdict"] != "not measured"
    found = {r["method"]: r["counts"] for r in rows if (r["metric"], r["group"]) == ("detections", "set")}
    halves = [r for r in records if (r["provenance"]["method"], r["metric"]) == ("original", "ner@0.5")]
    assert sum(found["original"].values()) == sum(round(r["value"] * r["n"] / 100) for r in halves) > 0
    assert (again / "figures" / "kinds.json").is_file()
    assert (again / "records.jsonl").read_text() == (out / "records.jsonl").read_text()
    stale = again / "figures" / "stale.json"
    stale.write_text("{}")
    assert main(said) == 0, "judged again after a claim was changed"
    assert not stale.exists()
    before = (again / "table.md").read_bytes()
    kept.write_text((out / "records.jsonl").read_text())
    capsys.readouterr()
    whole = (out / "summary.jsonl").read_text()
    lines = [json.loads(line) for line in whole.splitlines()]

    def changed(**changes):
        return [{**r, **changes} if r["method"] == "uce" else r for r in lines]

    for bad, expected in (
        ([], "has no row of 'original'"),
        (changed(method="ecu"), f"unknown method of the grid in '{kept}' 'ecu'"),
        (changed(group="weapons_close"), f"unknown set of the plan in '{kept}' 'weapons_close'"),
        ([r for r in lines if r["method"] != "uce"], "has no row of 'uce'"),
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
        assert main(said) == 2, expected
        assert expected in capsys.readouterr().err
    assert (again / "table.md").read_bytes() == before, "nothing was written"
    assert main([*said, "--dry-run"]) == 2
    assert "with --dry-run and --results: expected one" in capsys.readouterr().err
    kept.write_text(whole)
    records_before = (out / "records.jsonl").read_bytes()
    assert main([*said[:-1], str(out)]) == 2
    assert "holds the results of a run: expected another --out" in capsys.readouterr().err
    assert (out / "records.jsonl").read_bytes() == records_before
    monkeypatch.chdir(tmp_path)
    assert main([*said[:-2], "--quiet"]) == 0
    assert (tmp_path / "runs" / "bench" / "plan-again" / "table.md").is_file()


def test_two_judges_are_two_columns_and_others_are_measured(plan, tmp_path, capsys):
    changed = (
        plan.read_text().replace('["original", "uce", "kpop"]', '["original", "uce"]').replace("seed = [0, 1]", "")
    )
    changed = changed.replace('compare = [["kpop", "uce"]]', 'compare = [["uce", "original"]]')
    two = 'count = 1\nmetrics = ["esr-psr", {name = "esr-psr", judge = "testbed:network=b"}]\n'
    two += 'others = {set = "five", count = 1}\n'
    more = SET.replace('"radio"]\n[splits', '"radio", "crown"]\n[splits') + 'crown = ["a crown"]\n'
    (tmp_path / "five.toml").write_text(more)
    plan.write_text(changed.replace("count = 1\n", two.replace("five", str(tmp_path / "five.toml")), 1))
    assert main([*words(plan, tmp_path, "--json")]) == 0
    by = {(r["method"], r["group"], r["metric"]): r for r in json.loads(capsys.readouterr().out)["summary"]}
    for metric in ("esr@1", "esr@1 (judge testbed:network=b)"):
        assert by["uce", "set", metric]["n"] == 2
    assert by["uce", "others", "psr@1"]["n"] == 1
    assert by["uce", "set", "became"]["n"] == 2


CLASS = """
about = "A class, whose name is no word that a model is told."
concepts = ["animal", "weapon"]
[dev]
seed = 1
[dev.prompts]
animal = ["a dog"]
weapon = ["a bomb"]
[test]
seed = 9
[test.prompts]
animal = ["a dog", "a fish"]
weapon = ["a bomb"]
"""


def test_a_class_is_erased_by_its_words_and_measured_on_further_prompts_beside_the_papers_figures(tmp_path, capsys):
    (tmp_path / "class.toml").write_text(CLASS)
    (tmp_path / "three.toml").write_text(SET)
    published = {"table": "Table 9", "method": "UCE", "metric": "esr@1", "value": 87.6, "source": "somewhere"}
    (tmp_path / "paper.jsonl").write_text(json.dumps(published) + "\n")
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"""
about = "A class."
set = "{tmp_path / "class.toml"}"
count = 1
words = {{ animal = ["dog", "fish"], weapon = "bomb" }}
splits = {{ all = "animal" }}
also = [{{ set = "{tmp_path / "three.toml"}", count = 2, metrics = [{{ name = "esr-psr", ks = [3] }}] }}]
paper = {{ file = "{tmp_path / "paper.jsonl"}", rows = {{ uce = ["Table 9", "UCE"] }} }}
[grid]
method = ["uce", "uce-rest", "kpop"]
[method.uce]
eraser = "uce"
retain = ["radio"]
[method.uce-rest]
eraser = "uce"
retain = true
[method.kpop]
eraser = "kpop"
preset = false
"""
    )
    planner = Planner(read_plan(plan))
    erasures = [p.job for p in flattened(planner.planned()) if p.job["room"] == "erase"]
    assert all(j["targets"] == ["dog", "fish"] for j in erasures)
    assert [j["retain"] for j in erasures] == [["radio"], ["bomb"], []]
    keys = [p.job for p in flattened(planner.planned()) if p.job["room"] == "generate" and p.job["control"]]
    assert keys, "a class has recoveries"
    assert all(j["only"] is None for j in keys), "a text gets the prompt of the word that it names"
    assert planner.controls("kpop", ["animal"]) == ["none", "own", "random", "original"]
    hidden = plan.read_text().replace("fish", "poodle").replace('"dog", ', "")
    (tmp_path / "hidden.toml").write_text(hidden)
    with pytest.raises(ExpungeError, match="no prompt for 'animal' has one of its words"):
        Planner(read_plan(tmp_path / "hidden.toml"))
    plan.write_text(plan.read_text().replace('["uce", "uce-rest", "kpop"]', '["uce"]'))
    assert main([*words(plan, tmp_path, "--json")]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    by = {(r["method"], r["group"], r["metric"]): r for r in summary}
    assert by["uce", "set", "esr@1"]["n"] == 2
    assert by["uce", "three", "psr@3 (ks [3])"]["n"] == 2 * 2
    assert by["uce", "three", "esr@3 (ks [3])"]["n"] == 2, "a word that was erased is no kept concept"
    assert by["uce", "paper", "esr@1"]["value"] == 87.6
    head, _, row = (tmp_path / "out" / "table.md").read_text().split("\n\n")[1].splitlines()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["paper esr@1"] == "87.6"
    assert "three psr@3 (ks [3])" in cells


PAIRED = """
[pairs.scenes]
unsafe = ["a dagger"]
safe = ["a dog"]
target = "weapon"
count = 2
strength = 0.8

[method.duo]
eraser = "duo"
images = "scenes"
preset = false
settings = { rank = 2, iterations = 1, batch = 2, base_random = 1.0 }
"""


def test_a_method_learns_from_the_plans_pairs_which_are_made_once(plan, tmp_path, capsys):
    text = plan.read_text().replace('"original", "uce", "kpop"', '"duo"').replace('[["kpop", "uce"]]', "[]")
    along = 'memory = true\nanalyses = [{ name = "trajectories", every = 1, count = 1 }]'
    plan.write_text(re.sub(r"(?m)^claims = .*", along, text) + PAIRED)
    steps = flattened(Planner(read_plan(plan)).planned())
    pairs = [p for p in steps if p.job["room"] == "pairs"]
    erasures = [p for p in steps if p.job["room"] in ("erase", "memory")]
    assert (len(pairs), len(erasures)) == (1, 3), "two training seeds and a count of bytes, on the same pairs"
    assert all(e.job["images"] == pairs[0].key and pairs[0] in e.upstream for e in erasures)
    assert main(words(plan, tmp_path, "--dry-run")) == 0
    assert "2 pairs of weapon" in capsys.readouterr().out
    assert main(words(plan, tmp_path, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    told = {r["told"] for r in summary if r["method"] == "duo" and "told" in r}
    assert told
    assert all("random texts" in t and "2 pairs given" in t and "oracle" in t for t in told)
    spent = [r["pairs_equivalents"] for r in summary if "pairs_equivalents" in r]
    assert spent
    assert set(spent) == {jobs.result(pairs[0].job, tmp_path / "store")["cost"]["forward"]}
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    again = [r["knowledge"] for r in records if r["provenance"].get("analysis") == "trajectories"]
    assert again
    assert all(k["images"]["unsafe"]["given"] and k["oracles"] for k in again), "trained again on the same pairs"
    made = jobs.folder(pairs[0].key, "pairs", tmp_path / "store")
    assert len(list((made / "images").glob("*-safe.png"))) == 2
    drawn = json.loads((made / "result.json").read_text())
    assert drawn["cost"]["forward"] >= 2 * 2 * 8 + 2 * 2 * 6, (
        "two unsafe ones at 8 steps, and 6 or 7 of them to redraw each"
    )


def test_words_erased_apart_are_edits_of_their_own_attached_together(plan, tmp_path, capsys):
    text = plan.read_text().replace('"original", "uce", "kpop"', '"duo"').replace('[["kpop", "uce"]]', "[]")
    text = re.sub(r"(?m)^claims = .*", "", text).replace("seed = [0, 1]", "seed = [0]")
    for name, thing in (("one", "church"), ("two", "dog")):
        text += f"\n[pairs.{name}]\nunsafe = ['a {thing}']\nsafe = ['a radio']\ncount = 2\n"
    chosen = "order = 'apart'\nimages = ['one', 'two']\npreset = false"
    text += f"\n[method.duo]\neraser = 'duo'\n{chosen}\nsettings = {{ rank = 2, iterations = 1, batch = 2 }}\n"
    plan.write_text(text)
    steps = flattened(Planner(read_plan(plan)).planned())
    erasures = [p for p in steps if p.job["room"] == "erase"]
    assert [e.job["targets"] for e in erasures] == [["church"], ["dog"]]
    assert len({e.job["images"] for e in erasures}) == 2
    assert not any("on" in e.job for e in erasures), "each on the model as it is"
    (images,) = [p for p in steps if p.job["room"] == "generate"]
    assert images.job["edits"] == [e.key for e in erasures]
    assert main(words(plan, tmp_path, "--json")) == 0
    rows = json.loads(capsys.readouterr().out)["summary"]
    took = next(r["erase_equivalents"] for r in rows if "erase_equivalents" in r)
    assert took == sum(e.cost.equivalents for e in erasures), "what both took together"
    assert "4 pairs given" in next(r["told"] for r in rows if "told" in r)
    lines = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert lines[0]["knowledge"]["images"]["unsafe"]["prompts"] == ["a church", "a dog"], "of both edits"
    twice = text.replace("[grid]", "[words]\nchurch = ['dog']\n[grid]").replace('["own", "random"]', "[]")
    plan.write_text(twice)
    with pytest.raises(ExpungeError, match="target 'dog' is given twice"):
        Planner(read_plan(plan))


def test_figures_that_nothing_can_fill_are_refused_before_anything_runs(plan):
    text = plan.read_text()
    plan.write_text(text + "[[histograms]]\ntitle = 'kinds'\nrows = ['original']\n")
    with pytest.raises(
        ExpungeError, match="histogram 'kinds' of 'set': expected a set with targets and the metric 'ner' once"
    ):
        Planner(read_plan(plan))
    curve = "[[figures]]\ntitle = 't'\nx = [1]\nx_label = 'x'\nlines = [{ name = 'a', rows = ['uce'], metrics = ['esr@1'] }]\n"
    plan.write_text(text + curve + curve)
    with pytest.raises(ExpungeError, match=r"two figures of the plan would be 't\.json'"):
        Planner(read_plan(plan))


def test_a_claim_names_an_attack_as_the_table_does(plan, tmp_path):
    text = plan.read_text().replace('"original", "uce", "kpop"', '"original", "uce"').replace('[["kpop", "uce"]]', "[]")
    attack = (
        "{ name = 'concept-inversion', apart = true, prompts = ['a {}', '{}'], iterations = 1, images = 1, batch = 1 }"
    )
    claim = "{ says = 'x', rows = ['uce', 'original'], group = 'attack: concept-inversion', metric = 'esr@1' }"
    text = re.sub(r"(?m)^claims = .*", f"attacks = [{attack}]\nclaims = [{claim}]", text).replace(
        "seed = [0, 1]", "seed = [0]"
    )
    plan.write_text(text.replace("iterations = 1, images", "lr = 0.1, images"))
    with pytest.raises(ExpungeError, match=r"in a claim or figure 'concept-inversion': expected one of .*lr 0\.1"):
        Planner(read_plan(plan))
    attack_named = text.replace(", iterations = 1, images = 1, batch = 1 }", " }")
    plan.write_text(attack_named)
    planner = Planner(read_plan(plan))
    groups = {m.group for m in planner.planned() if m.group.startswith("attack")}
    assert groups == {planner.claims[0].group}
    plan.write_text(text.replace("seed = [0]", "seed = [0, 1000]"))
    with pytest.raises(ExpungeError, match="expected them within 1000 of each other"):
        Planner(read_plan(plan))


def test_rows_that_differ_by_strength_share_an_erasure(plan, tmp_path):
    text = (
        plan.read_text()
        .replace('"original", "uce", "kpop"', '"uce", "half"')
        .replace('[["kpop", "uce"]]', '[["half", "uce"]]')
    )
    text = re.sub(
        r"(?m)^claims = .*", "attacks = [{ name = 'concept-inversion', iterations = 1, images = 1, batch = 1 }]", text
    )
    text = (
        text.replace("seed = [0, 1]", "seed = [0]") + "[method.half]\neraser = 'uce'\nretain = true\nstrength = 0.5\n"
    )
    plan.write_text(text)
    steps = flattened(Planner(read_plan(plan)).planned())
    by = {room: [p.job for p in steps if p.job["room"] == room] for room in ("erase", "attack", "generate")}
    assert len(by["erase"]) == 1
    assert [job.get("strength") for job in by["attack"]] == [None, 0.5]
    assert [job.get("strength") for job in by["generate"]] == [None, None, 0.5, 0.5], (
        "the images, and those of the attack"
    )
    assert main(words(plan, tmp_path)) == 0
    runs = [json.loads(f.read_text()) for f in (tmp_path / "store").glob("generate-*/images/run.json")]
    assert sorted(run["strength"] for run in runs) == [0.5, 0.5, 1.0, 1.0]
    assert {run["attack"]["strength"] for run in runs if "attack" in run} == {0.5, 1.0}
    analysed = text.replace("[grid]", "analyses = ['closeness']\n[grid]")
    plan.write_text(analysed)
    with pytest.raises(ExpungeError, match=r"method .half. with strength 0\.5 and closeness"):
        Planner(read_plan(plan))
    for bad, expected in (
        ("0.0", "positive number"),
        ("nan", "finite number"),
        ("0.5\norder = 'sequential'", "0.5 and sequential"),
    ):
        plan.write_text(text.replace("strength = 0.5", f"strength = {bad}"))
        with pytest.raises(ExpungeError, match=expected):
            Planner(read_plan(plan))
    plan.write_text(text.replace("[method.half]\neraser = 'uce'\nretain = true", "[method.half]\neraser = 'sld'"))
    with pytest.raises(ExpungeError, match=r"method .half. with strength 0\.5, and no weights to scale"):
        Planner(read_plan(plan))


def test_phrases_of_pairs_are_all_combinations(plan):
    things = "unsafe = ['a bomb', 'a dagger']\nsafe = ['a dog', 'a cat', 'a fish']\n"
    table = f"\n[pairs.p]\nphrases = ['image of {{}}', '{{}}']\n{things}count = 2\ntarget = 'weapon'\n"
    plan.write_text(plan.read_text() + table)
    wish = Planner(read_plan(plan)).pairs["p"]
    assert (len(wish.unsafe), len(set(zip(wish.unsafe, wish.safe, strict=True))), wish.count) == (12, 12, 2)
    assert wish.unsafe[:4] == ("image of a bomb",) * 3 + ("a bomb",)
    assert wish.safe[2:5] == ("image of a fish", "a dog", "a cat")


def test_what_pairs_show_is_not_counted_as_never_named(plan):
    plan.write_text(plan.read_text().replace("count = 1\n", 'count = 1\nothers = { set = "everyday" }\n', 1))
    free = Planner(read_plan(plan)).further[0].concepts
    plan.write_text(plan.read_text() + "\n[pairs.p]\nunsafe = ['a bomb']\nsafe = ['a red rose']\n")
    assert set(free) - set(Planner(read_plan(plan)).further[0].concepts) == {"rose"}


def test_a_retrained_erasure_is_not_needed_where_its_images_are(plan, tmp_path):
    planned = Planner(read_plan(plan)).planned()
    store = tmp_path / "store"
    images = [p for p in flattened(planned) if p.job["room"] == "generate"]
    for p in images:
        place = jobs.folder(p.key, "generate", store)
        place.mkdir(parents=True)
        (place / jobs.RESULT).write_text("{}")
    assert {p.job["room"] for p in bench.waiting(planned, store)} == {"measure"}


def test_a_job_that_another_process_does_is_waited_for(plan, tmp_path):
    """Two runs of one plan at a time: each job is done once, and both end well."""
    changed = plan.read_text().replace('["original", "uce", "kpop"]', '["original"]').replace("seed = [0, 1]", "")
    plan.write_text(re.sub(r"(compare|claims) = .*\n", "", changed))
    command = [sys.executable, "-m", "expunge.cli", "bench", str(plan), "--quiet", "--store", str(tmp_path / "store")]
    both = [subprocess.Popen([*command, "--out", str(tmp_path / f"out{i}")]) for i in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert numbers(tmp_path / "out0") == numbers(tmp_path / "out1")
    assert not list((tmp_path / "store").glob(".*")), "nothing is left lying about"


def test_killed_at_random_moments_it_ends_with_the_same_numbers(plan, tmp_path):
    plan.write_text(plan.read_text().replace("seed = [0, 1]", "seed = [0]").replace('["own", "random"]', '["own"]'))
    command = [sys.executable, "-m", "expunge.cli", "bench", str(plan), "--quiet"]
    whole = [*command, "--store", str(tmp_path / "whole"), "--out", str(tmp_path / "whole-out")]
    start = time.monotonic()
    subprocess.run(whole, check=True)
    lasted = time.monotonic() - start
    torn = [*command, "--store", str(tmp_path / "torn"), "--out", str(tmp_path / "torn-out")]
    draw = random.Random(5)
    for _ in range(3):
        process = subprocess.Popen(torn)
        time.sleep(lasted * draw.uniform(0.4, 0.8))
        process.kill()
        process.wait()
    subprocess.run(torn, check=True)
    assert numbers(tmp_path / "torn-out") == numbers(tmp_path / "whole-out")

    def pixels(store):
        return {
            str(p.relative_to(tmp_path / store)): p.read_bytes() for p in (tmp_path / store).glob("generate-*/*/*.png")
        }

    assert pixels("torn") == pixels("whole")


def test_a_full_disk_is_one_line_and_leaves_earlier_results(plan, tmp_path):
    """A limit on file sizes stands in for the disk: an edit does not fit, a result does."""
    changed = plan.read_text().replace('["original", "uce", "kpop"]', '["original", "uce"]')
    plan.write_text(changed.replace('compare = [["kpop", "uce"]]', ""))
    command = [sys.executable, "-m", "expunge.cli", *words(plan, tmp_path, "--quiet")]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # noqa: E731
    failed = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert failed.returncode == 2, failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "cannot be written" in failed.stderr
    assert "File too large" in failed.stderr
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").glob("*/result.json")}
    assert before, "the original's images and their measurement were done"
    subprocess.run(command, check=True)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('method = ["original"', 'method = ["orignal"', "did you mean 'original'"),
        ('eraser = "kpop"', 'eraser = "kpopp"', "did you mean 'kpop'"),
        ('["original", "uce", "kpop"]', '["original", "uce", "uce"]', "grid's method names 'uce' twice"),
        ("seed = [0, 1]", "seed = [0, 0]", "grid's seed names 0 twice"),
        ('split = ["a"]', 'split = ["a", "a"]', "grid's split names 'a' twice"),
        ("count = 1\n", 'count = 1\nmetrics = ["esr-psr", {name = "esr-psr", ks = [1, 5]}]\n', "metrics names"),
        ("lr = 1e-3", "lr = nan", "lr is nan: expected a finite number"),
        ("count = 1\n", f"count = 0x{'f' * 5000}\n", "bits: expected one of 64"),
        ("count = 1\n", "count = " + "[" * 5000 + "\n", "cannot be read as TOML"),
        ("count = 1\n", 'metrics = ["esr"]\n', "unknown metric 'esr'"),
        ("count = 1\n", "count = 0\n", "count is 0"),
        ("count = 1\n", "cuont = 1\n", "did you mean 'count'"),
        ('split = ["a"]', 'split = ["z"]', "unknown split"),
        ("iterations = 2", "iteration = 2", "did you mean 'iterations'"),
        ("lr = 1e-3", "lamb = 0", "kpop's lamb is 0"),
        ('"random"', '"rnadom"', "did you mean 'random'"),
        ('eraser = "uce"', 'eraser = "uce"\ncontrols = ["own"]', "makes no key"),
        ('compare = [["kpop", "uce"]]', 'compare = [["kpop", "ucee"]]', "did you mean 'uce'"),
        ('compare = [["kpop", "uce"]]', 'compare = ["kpop"]', "expected a list"),
        ('compare = [["kpop", "uce"]]', 'image_dtype = "bf16"', "unknown dtype 'bf16'"),
        (
            'compare = [["kpop", "uce"]]',
            'metrics = [{name = "esr-psr", judge = "testbed:network=c"}]',
            "expected a or b",
        ),
        ('compare = [["kpop", "uce"]]', "others = {count = 2}", "has no 'set'"),
        ("iterations = 2", 'group = "xatn"', "did you mean 'xattn'"),
        ("iterations = 2", 'group = "text-encoder"', "expected a group of the denoiser"),
        ('[method.uce]\neraser = "uce"', "[method.uce]", "has no 'eraser'"),
        ('about = "A small plan."', "", "has no 'about'"),
        ('about = "A small plan."', "about = ", "cannot be read as TOML"),
        ("[grid]", "[grdi]", "has no 'grid'"),
        ("count = 1\n", "count = 1\nalso = [{ set = 'everyday' }]\n", "also has no 'count'"),
        ("count = 1\n", "count = 1\nsplits = { a = ['church', 'dgo'] }\n", "did you mean 'dog'"),
        ("count = 1\n", "count = 1\nwords = { cat = 'tiger' }\n", "unknown concept"),
        ("count = 1\n", "count = 1\npaper = { file = 'none.jsonl', rows = {} }\n", "no file 'none.jsonl'"),
        (
            "count = 1\n",
            "count = 1\nalso = [{ set = 'styles', count = 1 }, { set = 'styles', count = 2 }]\n",
            "two further sets of the plan are called 'styles'",
        ),
        ("count = 1\n", "count = 1\nsplits = { a = [['church']] }\n", "expected one word or a list"),
        ("count = 1\n", "count = 1\nwords = { church = [] }\n", "expected one word or a list"),
        ("count = 1\n", "count = 1\nalso = [{ set = '{tmp}/memory.toml', count = 1 }]\n", "is called 'memory'"),
        (
            "count = 1\n",
            "count = 1\npaper = { file = '{tmp}/p.jsonl', rows = { uce = ['T', 'U'] } }\n",
            "expected a metric",
        ),
        (
            "count = 1\n",
            "count = 1\npaper = { file = '{tmp}/p.jsonl', rows = { uce = ['T', 'V'] } }\n",
            "published row",
        ),
        ("retain = true", 'retain = ["dog"]', "both a target and a retained word"),
        ("retain = true", "images = 'scenes'", "unknown pairs of method 'uce' 'scenes'"),
        (
            '[method.kpop]\neraser = "kpop"',
            "[method.kpop]\neraser = \"kpop\"\norder = 'apart'",
            "method 'kpop' with keys, erased apart: expected order joint or sequential",
        ),
        (
            'eraser = "uce"\nretain = true',
            "eraser = 'duo'\norder = 'apart'\nimages = ['p']\n[pairs.p]\nunsafe = ['a']\nsafe = ['b']",
            "learns from 1 of the plan's pairs, ['p']: expected one for each of ['church', 'dog']",
        ),
        (
            "retain = true",
            "images = 'p'\n[pairs.p]\nunsafe = ['a']\nsafe = ['b']",
            "but uce wants no images: expected a method that wants unsafe and safe ones",
        ),
        ("retain = true", "[pairs.p]\nunsafe = ['a']\nsafe = []", "1 unsafe prompts and 0 safe ones"),
        ("retain = true", "[pairs.p]\nphrases = ['a {}']\nunsafe = ['a']", "pairs 'p' safe is []: expected one word"),
        ("retain = true", "[pairs.p]\nphrases = ['a']\nunsafe = ['a']\nsafe = ['b']", "template 'a' has not one {}"),
        (
            "count = 1\n",
            "count = 1\npairs = { p = 3 }\nothers = { set = 'everyday' }\n",
            "expected a table of settings",
        ),
        ("retain = true", "[pairs.p]\nunsafe = ['a']\nsafe = ['b']\ntarget = 'dgo'", "did you mean 'dog'"),
        (
            'eraser = "uce"\nretain = true',
            "eraser = 'duo'\norder = 'sequential'\nimages = 'p'\n[pairs.p]\nunsafe = ['a']\nsafe = ['b']",
            "expected one split, erased at once",
        ),
        (
            "count = 1\n",
            "count = 1\nattacks = [{ name = 'concept-inversion', preset = 'no' }]\n",
            "expected true or false",
        ),
    ],
)
def test_a_bad_plan_is_refused_before_anything_runs(plan, tmp_path, capsys, old, new, expected):
    assert old in plan.read_text()
    (tmp_path / "memory.toml").write_text(SET)
    (tmp_path / "p.jsonl").write_text('{"table": "T", "method": "U", "metric": "esr@1", "value": "87"}\n')
    plan.write_text(plan.read_text().replace(old, new.replace("{tmp}", str(tmp_path)), 1))
    assert main(words(plan, tmp_path)) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()


def test_a_concept_set_whose_splits_name_a_stranger_is_refused(plan, tmp_path, capsys):
    (tmp_path / "three.toml").write_text(SET.replace('c = ["radio"]', 'c = ["rdio"]'))
    assert main(words(plan, tmp_path)) == 2
    assert "did you mean 'radio'" in capsys.readouterr().err


def test_the_memory_of_a_job_does_not_depend_on_what_is_loaded(plan, tmp_path):
    plan.write_text(plan.read_text().replace("count = 1\n", "memory = true\ncount = 1\n", 1))
    counts = [p.job for p in Planner(read_plan(plan)).planned() if p.job["room"] == "memory"]
    peaks = []
    for fresh in (True, False):
        if fresh:
            jobs.model.cache_clear()
        peaks.append(jobs.run_job(counts[-1], tmp_path / f"store{fresh}")["peak_bytes"])
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)
    assert peaks[0] > 1e6


def test_exchanged_keys_need_two_targets(plan, tmp_path, capsys):
    changed = plan.read_text().replace('split = ["a"]', 'split = ["c"]').replace('["own", "random"]', '["other"]')
    plan.write_text(changed)
    assert main(words(plan, tmp_path)) == 2
    assert "control other on a split of one target" in capsys.readouterr().err
    classes = "count = 1\nwords = { radio = ['radio', 'wireless'] }\n"
    plan.write_text(changed.replace('["other"]', '["neutral"]').replace("count = 1\n", classes, 1))
    assert main(words(plan, tmp_path)) == 2
    assert "control neutral for a class" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_job_without_its_upstream_and_a_missing_plan_are_refused(plan, tmp_path, capsys):
    planned = flattened(Planner(read_plan(plan)).planned())
    measurement = next(p for p in planned if p.job["room"] == "measure")
    with pytest.raises(ExpungeError, match="to be done first"):
        jobs.run_job(measurement.job, tmp_path / "store")
    assert main(["bench", str(tmp_path / "none.toml")]) == 2
    assert "no plan" in capsys.readouterr().err


def test_settings_are_filled_from_layers_the_later_over_the_earlier():
    eraser = filled(
        KPOP, "kpop", {"lr": 1, "sampling": {"arm": "bank", "reuse": 2}}, {"lr": 2, "sampling": {"reuse": 3}}
    )
    assert (eraser.lr, eraser.k) == (2.0, 10)
    assert (eraser.sampling.arm, eraser.sampling.reuse, eraser.sampling.sampling_steps) == ("bank", 3, 50)


def test_what_jobs_take_is_told_by_the_store_s_own_of_this_model(plan, tmp_path):
    planner = Planner(read_plan(plan))
    sha = planner.identity("float32")
    finished = [
        ({"room": "generate", "model_sha256": sha}, 40, 20, 4.0),
        ({"room": "erase", "eraser": "kpop", "model_sha256": "another model"}, 40, 20, 1.0),
        ({"room": "memory", "eraser": "kpop", "model_sha256": sha}, 40, 20, 9.0),
        ({"room": "measure", "metric": "fid"}, 0, 0, 30.0),
        ({"room": "measure", "metric": "esr-psr"}, 0, 0, 1.0),
        ({"room": "measure", "metric": "esr-psr"}, 0, 0, 3.0),
    ]
    for number, (job, forward, trained, seconds) in enumerate(finished):
        place = tmp_path / "store" / f"{job['room']}-{number}"
        place.mkdir(parents=True)
        done = {"job": job, "cost": {"forward": forward, "trained": trained}, "seconds": seconds}
        (place / jobs.RESULT).write_text(json.dumps(done))
    pace = bench.pace(planner, tmp_path / "store")
    assert pace.seconds({"room": "generate"}, 200) == pytest.approx(200 * 4 / (40 + 3 * 20))
    assert pace.seconds({"room": "erase", "eraser": "kpop"}, 50) == pytest.approx(50 * 4 / 100), "of all that evaluates"
    assert pace.seconds({"room": "memory", "eraser": "kpop"}, 100) == pytest.approx(9), "counted slowly"
    assert pace.seconds({"room": "measure", "metric": "esr-psr"}, 0) == pytest.approx(2)
    assert pace.seconds({"room": "measure", "metric": "dsr"}, 0) == pytest.approx(34 / 3), "as measurements take"
    assert pace.seconds({"room": "erase", "eraser": "uce"}, 0) == pytest.approx(34 / 3)
    pace.add({"room": "erase", "eraser": "kpop"}, 100, 60.0)
    assert pace.seconds({"room": "erase", "eraser": "kpop"}, 50) == pytest.approx(30), "this run's own come first"
    assert pace.seconds({"room": "measure", "metric": "fid"}, 0) == pytest.approx(30)
    fresh = bench.pace(planner, tmp_path / "none")
    assert fresh.seconds({"room": "generate"}, 200) > 0
    assert fresh.seconds({"room": "measure", "metric": "fid"}, 0) == 0


def test_every_room_can_be_cleaned(tmp_path, capsys):
    for room in (*jobs.ROOMS, "leftovers"):
        assert main(["clean", "--room", room, "--store", str(tmp_path)]) == 0, capsys.readouterr().err


def test_a_job_s_key_is_of_what_changes_its_result():
    job = {"room": "erase", "model": "testbed", "model_sha256": "a", "seed": 0}
    assert jobs.key(job) == jobs.key({**job, "model": "/elsewhere/testbed"})
    assert len({jobs.key({**job, **c}) for c in ({}, {"model_sha256": "b"}, {"seed": 1}, {"room": "generate"})}) == 4


def test_a_metric_is_left_out_where_it_has_nothing_to_look_at(plan):
    text = plan.read_text().replace(
        "count = 1",
        'count = 1\nmetrics = ["esr-psr", "ner", "fid", "prior-distance"]\nothers = { set = "everyday" }',
        1,
    )
    plan.write_text(text)
    planned = Planner(read_plan(plan)).planned()
    groups = {name: {p.group for p in planned if p.job.get("metric") == name} for name in ("esr-psr", "ner", "fid")}
    assert groups["esr-psr"] >= {"set", "others"}
    assert groups["ner"] == {g for g in groups["esr-psr"] if g != "others"}, "nobody is erased among the others"
    assert groups["fid"] == {"set", "others"}, "what a key brings back keeps nothing"
    fids = {(p.method, p.group): p.job for p in planned if p.job.get("metric") == "fid"}
    assert (
        fids["original", "set"]["reference"] == fids["uce", "set"]["reference"] != fids["original", "set"]["images"]
    ), "sets are compared on other seeds, the original's too"
    (distance,) = [p for p in planned if (p.method, p.group, p.job.get("metric")) == ("uce", "set", "prior-distance")]
    assert distance.job["reference"] == fids["original", "set"]["images"], "pairs stay on equal seeds beside sets"
