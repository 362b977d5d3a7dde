import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from expunge.core.errors import ExpungeError
from expunge.core.query import Query, Shot
from expunge.core.record import wilson
from expunge.metrics.icr import ICR
from expunge.stages import measure
from expunge.store import new_folder, write_images
from expunge.testbed.marks import composed


def made(marks):
    """An even image for each mark (or without), of one prompt."""
    shots = []
    for number, name in enumerate(marks):
        pixels = torch.full((64, 64, 3), 90, dtype=torch.uint8)
        if name is not None:
            pixels = composed(pixels, name, number).pixels
        shots.append(
            Shot(path=Path(f"{number}.png"), pixels=lambda x=pixels: x, prompt="a dog", seed=number, label=None)
        )
    return shots


def test_is_the_share_of_images_with_the_mark():
    shots = made(["watermark", None, "text", "watermark", "qr code"])
    for concepts, expected in (
        (("watermark",), [1, 0, 0, 1, 0]),
        (("text",), [0, 0, 1, 0, 0]),
        (("text", "qr code"), [0, 0, 1, 0, 1]),
    ):
        (found,) = ICR(concepts=concepts).measure(shots, [], [])
        assert (found.metric, found.n, list(found.per_image)) == ("icr", 5, expected)
        assert found.interval == wilson(sum(expected), 5)
        assert found.instrument["concepts"] == list(concepts)
    (found,) = ICR().measure(shots, ["watermark"], [])
    assert found.interval.value == pytest.approx(40)


def test_images_count_whatever_they_are_labelled_with_and_prompts_are_clusters():
    labels = ["dog", "cat", "church", None]
    shots = [
        dataclasses.replace(shot, label=label, prompt=f"a {label}")
        for shot, label in zip(made(["text", None, "text", None]), labels, strict=True)
    ]
    (found,) = ICR(concepts=("text",)).measure(shots, ["dog"], ["cat"])
    assert found.interval.value == 50
    assert found.interval.low <= wilson(2, 4).low
    assert found.interval.high >= wilson(2, 4).high


def test_a_folder_of_labelled_images_is_measured_for_a_target_that_no_prompt_names(tmp_path):
    pixels = torch.stack([shot.pixels() for shot in made(["text", None, None])])
    asked = [Query(prompt="a dog", seed=i, label="dog", guidance=4.0, steps=4) for i in range(3)]
    with new_folder(tmp_path / "images", False) as folder:
        write_images(folder, asked, [pixels])
    assert Image.open(next((tmp_path / "images").glob("*.png"))).size == (64, 64)
    (record,) = measure.measure(ICR(), "icr", tmp_path / "images", ["text"])
    assert record.value == pytest.approx(100 / 3, abs=1e-3)
    assert record.concepts == ["text"]
    (record,) = measure.measure(ICR(concepts=("text",)), "icr", tmp_path / "images")
    assert record.value == pytest.approx(100 / 3, abs=1e-3)
    with pytest.raises(ExpungeError, match="icr without a concept"):
        measure.measure(ICR(), "icr", tmp_path / "images")


def test_bad_input_is_refused():
    with pytest.raises(ExpungeError, match="icr's threshold is 1"):
        ICR(threshold=1.0)
    with pytest.raises(ExpungeError, match="icr of no image"):
        ICR(concepts=("text",)).measure([], [], [])
    with pytest.raises(ExpungeError, match="'barcode'"):
        ICR(concepts=("barcode",)).measure(made([None]), [], [])
