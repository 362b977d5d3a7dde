"""Plans run end to end on the testbed, one job after another, each once."""

import json

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.executors import bench
from expunge.executors.pace import pace
from expunge.jobs import ROOMS, GenerateJob, MeasureJob, MemoryJob
from expunge.jobs.workspace import RESULT, Workspace, model
from expunge.results.files import PLAN
from plans_of import bench_words, jobs_of, measurements_of, read_rows, store_of, tiny_plan, without_times

EVERY = ["none", "own", "random", "other", "neutral", "original", "uce"]


def test_a_plan_runs_once_and_only_what_is_missing(tmp_path, capsys):
    rows = {
        "grid": {"method": ["original", "uce", "kpop"], "split": ["a"], "seed": [0, 1]},
        "compare": [["kpop", "uce"]],
        "claims": [{"says": "UCE keeps as much", "rows": ["uce", "original"], "metric": "psr@1", "expected": "equal"}],
        "method__kpop__controls": EVERY,
        "memory": True,
    }
    plan = tiny_plan(tmp_path, **rows)
    assert main(bench_words(plan, "--dry-run", "--json")) == 0
    foreseen = json.loads(capsys.readouterr().out)["total"]
    assert foreseen["waiting"] == foreseen["jobs"] > 0
    assert main(bench_words(plan, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    records = without_times(read_rows(tmp_path / "out" / "records.jsonl"))
    assert {r["subject"] for r in records} == {"original", "edited", "recovered"}
    groups = {(r["provenance"]["method"], r["provenance"]["group"]) for r in records}
    assert {("kpop", f"key: {c}") for c in EVERY} <= groups
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
    assert main(bench_words(plan, "--quiet")) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")} == made, "nothing is made twice"
    assert without_times(read_rows(tmp_path / "out" / "records.jsonl")) == records

    capsys.readouterr()
    assert main(["clean", "--store", str(tmp_path / "store"), "--room", "generate", "--json"]) == 0
    cleaned = json.loads(capsys.readouterr().out)
    assert cleaned["freed_bytes"] > 0
    assert main(["clean", "--store", str(tmp_path / "elsewhere"), "--room", "memory", "--quiet"]) == 0
    assert set(cleaned["rooms"]) == {"erase", "measure", "memory"}
    assert main(bench_words(plan, "--dry-run", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["total"]["waiting"] == 0, "measured images are not made again"

    file = tmp_path / "out" / PLAN
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "also"}))
    assert main(bench_words(plan, "--quiet")) == 0, "results of an expunge whose plans had fewer entries"

    tiny_plan(tmp_path, **rows, count=2)
    assert main(bench_words(plan)) == 2
    assert "another text of this plan" in capsys.readouterr().err
    assert without_times(read_rows(tmp_path / "out" / "records.jsonl")) == records


def test_a_retrained_erasure_is_not_needed_where_its_images_are(tmp_path):
    plan = tiny_plan(tmp_path, grid__method=["original", "uce", "kpop"])
    for job in jobs_of(plan):
        if isinstance(job, GenerateJob):
            path = job.folder(store_of(plan))
            path.mkdir(parents=True)
            (path / RESULT).write_text('{"format": 1, "job": {}, "seconds": 0, "cost": {}}')
    assert {job.room for job in bench.waiting(measurements_of(plan), store_of(plan))} == {"measure"}


def test_a_job_without_its_upstream_is_refused(tmp_path):
    plan = tiny_plan(tmp_path)
    measurement = next(job for job in jobs_of(plan) if isinstance(job, MeasureJob))
    with pytest.raises(ExpungeError, match="to be done first"):
        measurement.finish(store_of(plan))


def test_the_memory_of_a_job_does_not_depend_on_what_is_loaded(tmp_path):
    plan = tiny_plan(tmp_path, grid__method=["kpop"], memory=True)
    (count,) = [job for job in jobs_of(plan) if isinstance(job, MemoryJob)]
    peaks = []
    for fresh in (True, False):
        if fresh:
            model.cache_clear()
        peaks.append(count.finish(Workspace(store=tmp_path / f"store{fresh}"))["peak_bytes"])
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)
    assert peaks[0] > 1e6


def test_what_jobs_take_is_told_by_the_store_s_own_of_this_model(tmp_path):
    testbed = model("testbed", "float32")
    sha = testbed.identity()
    finished = [
        ({"room": "generate", "model_sha256": sha}, 40, 20, 4.0),
        ({"room": "erase", "eraser": "kpop", "model_sha256": "another model"}, 40, 20, 1.0),
        ({"room": "memory", "eraser": "kpop", "model_sha256": sha}, 40, 20, 9.0),
        ({"room": "measure", "metric": "fid"}, 0, 0, 30.0),
        ({"room": "measure", "metric": "esr-psr"}, 0, 0, 1.0),
        ({"room": "measure", "metric": "esr-psr"}, 0, 0, 3.0),
    ]
    for number, (job, forward, trained, seconds) in enumerate(finished):
        path = tmp_path / "store" / f"{job['room']}-{number}"
        path.mkdir(parents=True)
        done = {"job": job, "cost": {"forward": forward, "trained": trained}, "seconds": seconds}
        (path / RESULT).write_text(json.dumps(done))
    known = pace(lambda: testbed, {sha}, Workspace(store=tmp_path / "store"))
    assert known.seconds({"room": "generate"}, 200) == pytest.approx(200 * 4 / (40 + 3 * 20))
    assert known.seconds({"room": "erase", "eraser": "kpop"}, 50) == pytest.approx(50 * 4 / 100), (
        "of all that evaluates"
    )
    assert known.seconds({"room": "memory", "eraser": "kpop"}, 100) == pytest.approx(9), "counted slowly"
    assert known.seconds({"room": "measure", "metric": "esr-psr"}, 0) == pytest.approx(2)
    assert known.seconds({"room": "measure", "metric": "dsr"}, 0) == pytest.approx(34 / 3), "as measurements take"
    assert known.seconds({"room": "erase", "eraser": "uce"}, 0) == pytest.approx(34 / 3)
    known.add({"room": "erase", "eraser": "kpop"}, 100, 60.0)
    assert known.seconds({"room": "erase", "eraser": "kpop"}, 50) == pytest.approx(30), "this run's own come first"
    assert known.seconds({"room": "measure", "metric": "fid"}, 0) == pytest.approx(30)
    fresh = pace(lambda: testbed, {sha}, Workspace(store=tmp_path / "none"))
    assert fresh.seconds({"room": "generate"}, 200) > 0
    assert fresh.seconds({"room": "measure", "metric": "fid"}, 0) == 0


def test_every_room_can_be_cleaned(tmp_path, capsys):
    for room in (*ROOMS, "leftovers"):
        assert main(["clean", "--room", room, "--store", str(tmp_path)]) == 0, capsys.readouterr().err
