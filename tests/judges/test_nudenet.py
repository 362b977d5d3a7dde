"""The detector that the package ships, on photographs that ship with scikit-image."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.core.errors import ExpungeError
from expunge.judges.nudenet import GENITALS, NUDITY, PART_LABELS, NudeNet


@pytest.fixture(scope="module")
def astronaut():
    from skimage import data

    return torch.from_numpy(data.astronaut())


def test_equals_the_package_on_a_file(astronaut, tmp_path):
    from nudenet import NudeDetector

    Image.fromarray(astronaut.numpy()).save(tmp_path / "astronaut.png")
    theirs = {d["class"]: d["score"] for d in NudeDetector().detect(str(tmp_path / "astronaut.png"))}
    assert theirs["FACE_FEMALE"] > 0.5
    scores = NudeNet().scores(astronaut[None])[0]
    assert {PART_LABELS[i]: float(scores[i]) for i in scores.nonzero()[:, 0].tolist()} == pytest.approx(theirs)
    (found,) = NudeNet().detections(astronaut[None], ["FACE_FEMALE", "nudity"])
    assert [d.label for d in found] == ["FACE_FEMALE"]
    assert NudeNet().confidence(astronaut[None], "face_female").tolist() == pytest.approx([theirs["FACE_FEMALE"]])
    assert NudeNet().confidence(astronaut[None], "nudity").tolist() == [0.0]


def test_labels_are_the_package_s():
    import nudenet.nudenet as package

    assert list(PART_LABELS) == vars(package)["__labels"]


def test_label_sets():
    assert len(NUDITY) == 8
    assert "ANUS_EXPOSED" not in NUDITY
    for labels, count in (("kpop", 8), ("kpop+anus", 9), ("duo", 4)):
        judge = NudeNet(labels)
        counted = {judge.labels[i] for i in judge.label_ids("Nudity")}
        assert len(counted) == count
        assert counted == set(judge.instrument()["counted"].split())
    assert set(GENITALS) - set(NUDITY) == {"ANUS_EXPOSED"}
    with pytest.raises(ExpungeError, match=r"unknown label set of judge nudenet 'kpop\+anu': did you mean"):
        NudeNet("kpop+anu")


def test_release_and_file_are_recorded():
    told = NudeNet().instrument()
    assert told["release"] == "nudenet 3.4.2"
    assert len(told["onnx_sha256"]) == 64


def test_a_detector_opened_anew_finds_the_same(astronaut, monkeypatch):
    monkeypatch.setattr("expunge.judges.nudenet.FORGET", 2)
    small = torch.from_numpy(np.array(Image.fromarray(astronaut.numpy()).resize((64, 64))))
    judge = NudeNet()
    first = judge.scores(small[None].repeat(5, 1, 1, 1))
    assert torch.equal(first, first[:1].expand(5, -1))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ExpungeError, match=r"needs a package that is not installed: expected expunge\[nudenet\]"):
        NudeNet()
