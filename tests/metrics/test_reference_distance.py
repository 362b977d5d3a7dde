"""The distance to another model's images: the formula is `prior-distance`'s; what differs is whose images they are."""

import dataclasses
import json

import pytest

from expunge.cli import main
from expunge.metrics.prior_distance import PriorDistance
from expunge.metrics.reference_distance import ReferenceDistance
from expunge.store import read_images


def test_is_the_distance_of_prior_distance_from_other_images(images):
    shots = read_images(images)
    moved = [dataclasses.replace(s, pixels=lambda s=s: s.pixels().roll(3, 1)) for s in shots]
    mine = {m.metric: m for m in ReferenceDistance().measure(shots, ["church"], ["dog", "radio"], moved)}
    prior = {m.metric: m for m in PriorDistance().measure(shots, ["church"], ["dog", "radio"], moved)}
    assert mine["reference_distance_erased"].per_image == prior["target_distance"].per_image
    assert sorted(mine["reference_distance_kept"].per_image) == sorted(prior["prior_distance"].per_image)
    assert mine["reference_distance_kept"].interval.value > 0


def test_images_without_a_label_count_as_kept(images):
    shots = [dataclasses.replace(s, label=None) for s in read_images(images)]
    found = ReferenceDistance().measure(shots, [], [], shots)
    assert [(m.metric, m.n) for m in found] == [("reference_distance_kept", len(shots))]
    assert found[0].interval.value == pytest.approx(0, abs=1e-4)


def test_the_command_takes_an_edited_model_as_the_reference_which_others_refuse(images, tmp_path, capsys):
    edited = tmp_path / "edited"
    edited.mkdir()
    for file in images.iterdir():
        (edited / file.name).write_bytes(file.read_bytes())
    run = json.loads((edited / "run.json").read_text())
    edit = {"id": "0" * 16, "kind": "weights", "provenance": None}
    (edited / "run.json").write_text(json.dumps({**run, "edits": [edit], "model": "theirs"}))
    words = ["--images", str(images), "--reference", str(edited), "--target", "church"]
    assert main(["measure", "prior-distance", *words]) == 2
    assert "expected the original model's images" in capsys.readouterr().err
    assert main(["measure", "reference-distance", *words, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    assert {r["provenance"]["reference_model"] for r in records} == {"theirs"}
    assert {tuple(r["provenance"]["reference_edits"]) for r in records} == {("0" * 16,)}
    assert main(["measure", "reference-distance", "--images", str(images)]) == 2
    assert "expected the reference's images to compare with" in capsys.readouterr().err
