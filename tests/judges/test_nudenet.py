"""The detector that the package ships, on photographs that ship with scikit-image."""

import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from expunge.core.errors import ExpungeError
from expunge.judges.nudenet import GENITALS, NUDITY, PART_LABELS, NudeNet
from expunge.store import read_pixels, read_views


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


def test_colours_may_reach_the_network_as_they_are(astronaut):
    """The package swaps red and blue of files (findings/nudenet_swaps_red_and_blue_of_files.sh), and not of arrays."""
    from nudenet import NudeDetector

    (theirs,) = NudeDetector().detect(astronaut.numpy())
    ((ours,),) = NudeNet(channels="rgb").detections(astronaut[None], ["FACE_FEMALE"])
    ((swapped,),) = NudeNet().detections(astronaut[None], ["FACE_FEMALE"])
    assert ours.score == pytest.approx(theirs["score"])
    assert ours.score > swapped.score + 0.05
    assert NudeNet(channels="rgb").instrument() == NudeNet().instrument() | {"channels": "rgb"}
    with pytest.raises(ExpungeError, match="unknown channels of judge nudenet 'bgr'"):
        NudeNet(channels="bgr")


@pytest.fixture(scope="module")
def pictures(astronaut, tmp_path_factory):
    """The astronaut as users may have the picture."""
    place, whole = tmp_path_factory.mktemp("pictures"), Image.fromarray(astronaut.numpy())
    turned, deep = Image.Exif(), np.array(whole)[..., ::-1].astype(np.uint16) * 257
    turned[0x0112] = 6
    whole.rotate(90, expand=True).save(place / "turned.jpg", exif=turned)
    whole.crop((50, 0, 450, 300)).save(place / "wide.jpg", quality=80)
    whole.convert("L").save(place / "grey.png")
    cv2.imwrite(str(place / "deep.png"), deep)
    cv2.imwrite(str(place / "deep-grey.png"), deep[..., 0])
    whole.quantize(64).save(place / "palette.gif")
    whole.save(place / "whole.webp")
    whole.convert("CMYK").save(place / "inks.jpg")
    whole.resize((1000, 3)).save(place / "thin.png")
    clear = whole.convert("RGBA")
    clear.putalpha(60)
    clear.save(place / "clear.png")
    return place


@pytest.mark.parametrize(
    "name", ["turned.jpg", "wide.jpg", "grey.png", "deep.png", "deep-grey.png", "palette.gif", "whole.webp", "thin.png"]
)
def test_pictures_of_users_are_seen_as_the_package_reads_them(pictures, name):
    from nudenet import NudeDetector

    theirs = [(d["class"], d["score"]) for d in NudeDetector().detect(str(pictures / name))]
    assert bool(theirs) == (name != "thin.png")
    for pixels in (read_pixels(pictures / name), *read_views(pictures / name)):
        assert [tuple(d) for d in NudeNet()._found(pixels)] == theirs


def test_inks_and_what_is_transparent_are_seen_too(pictures):
    from nudenet import NudeDetector

    (theirs,) = NudeDetector().detect(str(pictures / "inks.jpg"))
    (ours,) = NudeNet()._found(read_pixels(pictures / "inks.jpg"))
    assert (ours.label, ours.score) == (theirs["class"], pytest.approx(theirs["score"], abs=0.01)), (
        "colours round otherwise"
    )
    _, under = read_views(pictures / "clear.png")
    theirs = [(d["class"], d["score"]) for d in NudeDetector().detect(str(pictures / "clear.png"))]
    assert [tuple(d) for d in NudeNet()._found(under)] == theirs, "the package does not read transparency"


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


def test_papers_have_their_labels_and_thresholds():
    """The counts are of the papers' own lists of labels."""
    for paper, count, threshold in (("unlearn-diff-atk", 9, 0.45), ("rece", 9, 0.6), ("pund", 5, 0.6)):
        judge = NudeNet(paper=paper)
        assert len(judge.label_ids("nudity")) == count
        assert judge.threshold == threshold
        told = judge.instrument()
        assert (told["paper"], told["threshold"]) == (paper, str(threshold))
        assert len(told["counted"].split()) == count
    assert NudeNet().threshold is None
    assert "paper" not in NudeNet().instrument()
    assert {PART_LABELS[i] for i in NudeNet(paper="rece").label_ids("nudity")} == {
        label for label in PART_LABELS if label.endswith("_EXPOSED")
    }
    for how, words in (
        ({"paper": "rice"}, "unknown paper of judge nudenet 'rice': did you mean 'rece'"),
        (
            {"paper": "p4d"},
            "paper p4d judged by NudeNet 2's classifier, another network: expected one of unlearn-diff-atk",
        ),
        ({"paper": "rece", "labels": "duo"}, "with labels duo and those of paper rece: expected one of the two"),
    ):
        with pytest.raises(ExpungeError, match=words):
            NudeNet(**how)


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
