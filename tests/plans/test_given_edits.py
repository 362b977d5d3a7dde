"""Plans whose rows are finished edits: made elsewhere, measured and attacked like an erasure's."""

import json

import pytest
import torch
from safetensors.torch import save_file

from expunge import backbones
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.jobs import GivenJob, Workspace
from expunge.plans.read import read_plan
from expunge.stages import erase
from expunge.store import load_edit
from plans_of import bench_words, jobs_of, read_rows, store_of, tiny_plan

ATTACKED = {"attacks": [{"name": "rounding", "count": 2}], "metrics": ["esr-psr", "confidence"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An edit of church by UCE, as a file."""
    backbone = backbones.load("testbed")
    eraser = erase.build("uce", {}, "testbed")
    edit = erase.run(backbone, "uce", eraser, [Concept(name="church")], [])
    path = tmp_path_factory.mktemp("edit") / "edit.safetensors"
    edit.save(path)
    return edit, path


def given(tmp_path, path, **changes):
    plan = {"grid__method": ["original", "theirs"], "grid__split": ["a"], "method": {"theirs": {"edits": [str(path)]}}}
    return tiny_plan(tmp_path, **{**plan, "splits": {"a": ["church"]}, **changes})


def test_a_finished_edit_is_measured_attacked_and_kept_by_its_id(finished, tmp_path):
    edit, path = finished
    plan = given(tmp_path, path, **ATTACKED)
    jobs = jobs_of(plan)
    taken = [job for job in jobs if isinstance(job, GivenJob)]
    assert [job.edit for job in taken] == [edit.id]
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(path.read_bytes())
    again = [job.key for job in jobs_of(given(tmp_path, moved, **ATTACKED))]
    assert again == [job.key for job in jobs], "where the file lies is no part of a key"
    counts = {(j.attack, j.count) for j in jobs if j.room == "attack"}
    assert counts == {("rounding", 2)}, "an attack's own number of queries, not the plan's"

    plan = given(tmp_path, path, **ATTACKED)
    assert main([*bench_words(plan), "--quiet"]) == 0
    rows = read_rows(tmp_path / "out" / "records.jsonl")
    theirs = [r for r in rows if r["provenance"]["method"] == "theirs"]
    assert {tuple(r["provenance"]["edits"]) for r in theirs} == {(edit.id,)}
    assert {r["eraser"] for r in theirs} == {"uce"}, "what the file says of itself"
    summary = {(r["method"], r["group"], r["metric"]) for r in read_rows(tmp_path / "out" / "summary.jsonl")}
    assert ("theirs", "attack: rounding", "esr@1") in summary
    sure = next(r for r in theirs if r["metric"] == "confidence")
    assert 0 <= sure["low"] <= sure["value"] <= sure["high"] <= 100
    assert (tmp_path / "out" / "worst.jsonl").is_file()

    path_of = taken[0].folder(store_of(plan))
    (path_of / "result.json").unlink()
    other = GivenJob(edit="0" * 16, file=str(path))
    with pytest.raises(ExpungeError, match=f"holds edit {edit.id}: expected {'0' * 16}"):
        other.run(Workspace(store=tmp_path / "store"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": {"theirs": {}}}, "has no 'eraser': expected one, finished edits, or another model"),
        ({"method": {"theirs": {"edits": ["{path}"], "retain": True}}}, "has finished edits and retain"),
        ({"method": {"theirs": {"edits": ["none.safetensors"]}}}, "no edit file 'none.safetensors'"),
        ({"attacks": [{"name": "rounding", "count": 0}]}, "attack 'rounding''s count is 0"),
        (
            {"attacks": [{"name": "rounding", "count": "2"}]},
            "attack 'rounding' with count '2': expected a whole number",
        ),
    ],
)
def test_what_a_finished_edit_cannot_have_is_refused(finished, tmp_path, capsys, changes, expected):
    plan = given(tmp_path, finished[1], **changes)
    plan.write_text(plan.read_text().replace("{path}", json.dumps(str(finished[1]))[1:-1]))
    assert main(bench_words(plan)) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plan_says_so_of_the_file_it_was_read_from(finished, tmp_path):
    assert read_plan(given(tmp_path, finished[1])).method["theirs"].edits == (str(finished[1]),)


def test_somebody_s_lora_is_measured_by_the_id_of_its_contents(tmp_path):
    """Its file has no header of expunge's."""
    backbone = backbones.load("testbed")
    layers = [name for name in backbone.layers("transformer") if name.endswith("attn2.to_k")]
    tensors = {}
    for layer in layers:
        out, taken = backbone.tensors([f"{layer}.weight"])[f"{layer}.weight"].shape
        tensors[f"{layer}.lora_A.weight"] = torch.ones(1, taken)
        tensors[f"{layer}.lora_B.weight"] = torch.full((out, 1), 0.1)
    save_file(tensors, tmp_path / "lora.safetensors")
    plan = given(tmp_path, tmp_path / "lora.safetensors")
    assert main([*bench_words(plan), "--quiet"]) == 0
    rows = [r for r in read_rows(tmp_path / "out" / "records.jsonl") if r["provenance"]["method"] == "theirs"]
    known = load_edit(tmp_path / "lora.safetensors").id
    assert {(tuple(r["provenance"]["edits"]), r["eraser"]) for r in rows} == {((known,), None)}
    assert main(["report", str(tmp_path / "out"), "--store", str(store_of(plan).store), "--quiet"]) == 0
