"""A folder of what single commands wrote: which rows its numbers get, and what is left to other reports."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from expunge import backbones
from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.report.caveats import caveats
from expunge.report.reading import read
from expunge.results import tables
from plans_of import read_rows


def run(*words):
    assert main([*map(str, words), "--quiet"]) == 0


def measured(images, out, *more):
    run("measure", "esr-psr", "--images", images, "--out", out, *more)


def column(found, metric):
    """A metric's values by row, as the table shows them."""
    table = tables.measured(found.summary)
    place = table.head.index(metric)
    return {cells[0].text: cells[place].value for cells in table.rows}


def counted(found):
    """How many numbers each row of the table has."""
    table = tables.measured(found.summary)
    return {cells[0].text: sum(cell.text != "–" for cell in cells[1:]) for cells in table.rows}


def values(file, metric="esr@1"):
    return [r["value"] for r in read_rows(file) if r["metric"] == metric]


@pytest.fixture
def place(tmp_path):
    return tmp_path / "runs"


def test_folders_of_one_name_are_rows_of_their_own(command_run, place):
    for name in ("church", "dog"):
        shutil.copytree(command_run / "after", place / name / "after")
        measured(place / name / "after", place / name / "records.jsonl", "--target", name)
    found = read(place, place / "store")
    shown = {f"{name}/after": values(place / name / "records.jsonl")[0] for name in ("church", "dog")}
    assert column(found, "esr@1") == shown
    assert [side.name for side in found.sides] == list(shown)
    assert {erasure.method for erasure in found.erasures} == set(shown)


def test_folders_of_one_name_elsewhere_are_told_by_their_paths(command_run, place, tmp_path):
    for name in ("church", "dog"):
        shutil.copytree(command_run / "after", tmp_path / name / "after")
        measured(tmp_path / name / "after", place / "records.jsonl", "--target", name)
    found = read(place, place / "store")
    assert set(column(found, "esr@1")) == {"../church/after", "../dog/after"}
    assert found.gone == 0
    shutil.rmtree(tmp_path / "dog")
    assert read(place, place / "store").gone == 1


def test_two_judges_are_two_columns(command_run, place):
    shutil.copytree(command_run / "after", place / "after")
    shutil.copytree(command_run / "before", place / "before")
    records = place / "records.jsonl"
    for judge in ("testbed", "testbed:network=b"):
        measured(place / "after", records, "--target", "church", "--judge", judge)
    measured(place / "before", place / "before.jsonl", "--target", "church")
    found = read(place, place / "store")
    one, other = values(records)
    (original,) = values(place / "before.jsonl")
    assert column(found, "esr@1 (judge testbed)") == {"after": one, "before": original}
    assert column(found, "esr@1 (judge testbed:network=b)") == {"after": other, "before": None}
    became = {row["metric"] for row in found.summary if row["method"] == "after" and "shares" in row}
    assert became == {"became (judge testbed)", "became (judge testbed:network=b)"}


def test_two_targets_are_two_columns(command_run, place):
    shutil.copytree(command_run / "after", place / "after")
    for target in ("church", "dog"):
        measured(place / "after", place / "records.jsonl", "--target", target)
    found = read(place, place / "store")
    church, dog = values(place / "records.jsonl")
    assert church != dog
    assert column(found, "esr@1 (target church)") == {"after": church}
    assert column(found, "esr@1 (target dog)") == {"after": dog}
    assert not any("kept" in row["metric"].partition("(")[2] for row in found.summary), "which follows from the target"


def test_what_was_measured_twice_and_nobody_knows_when_is_shown_twice(command_run, place):
    """As an older expunge left it, whose records do not say when they were measured."""
    place.mkdir()
    rows = [{k: v for k, v in row.items() if k != "measured"} for row in read_rows(command_run / "after.jsonl")]
    for name, value in (("a", 25.0), ("b", 75.0)):
        lines = [{**row, "value": value} for row in rows if not row["metric"].startswith("became")]
        (place / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = read(place, place / "store")
    assert (column(found, "esr@1"), column(found, "esr@1 (2)")) == ({"after": 25.0}, {"after": 75.0})


def test_a_folder_as_it_was_has_its_numbers_under_plain_names(command_run):
    found = read(command_run, command_run / "store")
    assert set(column(found, "esr@1")) == {"before", "after"}
    assert len(set(counted(found).values())) == 1
    assert {row["provenance"]["variant"] for row in found.records} == {""}


def test_plans_and_audits_in_a_folder_have_reports_of_their_own(command_run, bench_run, place):
    shutil.copytree(command_run, place)
    shutil.copytree(bench_run.out, place / "plan")
    shutil.copytree(bench_run.out, place / "church" / "audit")
    (place / "church" / "audit" / "plan.json").rename(place / "church" / "audit" / "audit.json")
    shutil.copytree(bench_run.store, place / "store")
    found, alone = read(place, place / "store"), read(command_run, command_run / "store")
    assert not any(str(row["method"]).startswith("generate-") for row in found.summary)
    assert found.summary == alone.summary
    assert found.figures == alone.figures
    assert [e.method for e in found.erasures] == [e.method for e in alone.erasures]
    told = {caveat.title: caveat.text for caveat in caveats(found)}
    assert "church/audit, plan (expunge report FOLDER)" in told["Plans and audits have reports of their own"]
    with pytest.raises(ExpungeError, match=r"expected a run of expunge, such as '.*out' in it"):
        read(bench_run.out.parent, bench_run.store)


def test_images_by_a_plain_lora_are_reported(place):
    backbone = backbones.load("testbed")
    tensors = {}
    for layer in backbone.layers("attn"):
        out, taken = backbone.tensors([f"{layer}.weight"])[f"{layer}.weight"].shape
        tensors[f"{layer}.lora_A.weight"] = torch.zeros(1, taken)
        tensors[f"{layer}.lora_B.weight"] = torch.zeros(out, 1)
    place.mkdir()
    save_file(tensors, place / "lora.safetensors")
    sampled = ["--concept", "church", "--count", "1", "--steps", "1"]
    run("generate", "--edit", place / "lora.safetensors", *sampled, "--out", place / "images")
    measured(place / "images", place / "records.jsonl", "--target", "church")
    run("report", place, "--out", place / "report.html")
    (erasure,) = read(place, place / "store").erasures
    assert (erasure.method, erasure.eraser, erasure.settings) == ("images", "", {})
