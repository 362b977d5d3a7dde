"""Images that an eraser wants: made by the model, or the user's own."""

import pytest
import torch
from PIL import Image

import expunge
from conftest import tiny_pipeline
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.stages import erase

SETTINGS = {"shots": 2, "epochs": 1, "lr": 1e-3}


def folder_of(path, *sizes):
    path.mkdir()
    for i, size in enumerate(sizes):
        pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(i)).byte()
        Image.fromarray(pixels.numpy()).save(path / f"{i}.png")
    return path


def test_the_model_makes_the_images_that_nobody_gives(backbone):
    eraser = erase.build("few-shot", SETTINGS, None)
    targets = [Concept(name="church"), Concept(name="dog")]
    task, again, other = (erase.prepared(backbone, eraser, targets, [], seed) for seed in (1, 1, 2))
    assert {name: len(shots) for name, shots in task.images.items()} == {"church": 2, "dog": 2}
    assert task.images["church"][0].prompt == "a photo of a church"
    pixels = [t.images["church"][0].pixels() for t in (task, again, other)]
    assert pixels[0].shape == (*backbone.image_size, 3) == (16, 16, 3)
    assert torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[0], pixels[2])


def test_a_folder_of_photographs_is_cut_to_the_models_size(backbone, tmp_path):
    own = folder_of(tmp_path / "own", (40, 20), (16, 16), (9, 30))
    (own / "notes.txt").write_text("not an image")
    eraser = erase.build("few-shot", SETTINGS, None)
    task = erase.prepared(backbone, eraser, [Concept(name="church")], [], 0, images={"church": own})
    assert [shot.pixels().shape for shot in task.images["church"]] == [(16, 16, 3)] * 3
    given = expunge.erase(backbone, "church", method="few-shot", settings=SETTINGS, images=own)
    made = expunge.erase(backbone, "church", method="few-shot", settings=SETTINGS)
    assert given.id != made.id
    had = [{"church": {"count": 3, "given": True}}, {"church": {"count": 2, "given": False}}]
    assert [edit.provenance.images for edit in (given, made)] == had, "an auditor asks whose images they were"


def test_making_images_counts_as_cost(backbone):
    edit = expunge.erase(tiny_pipeline(), "church", method="few-shot", settings=SETTINGS)
    assert edit.provenance is not None
    assert edit.provenance.cost.trained == 2
    assert edit.provenance.cost.forward == 2 * 2 * 50, "two images at the 50 guided steps of Stable Diffusion"


def test_folders_that_cannot_serve_are_refused(backbone, tmp_path):
    own = folder_of(tmp_path / "own", (16, 16))
    (own / "1.png").write_bytes(b"no image")
    empty = tmp_path / "empty"
    empty.mkdir()
    call = {"method": "few-shot", "settings": SETTINGS}
    for images, targets, words in (
        (own, "church", "not a readable image"),
        (empty, "church", "holds no image"),
        (tmp_path / "nowhere", "church", "holds no image"),
        (own, ["church", "dog"], "for 2 targets: expected one for each"),
        ({"castle": own}, "church", "unknown target of the images 'castle'"),
    ):
        with pytest.raises(ExpungeError, match=words):
            expunge.erase(backbone, targets, images=images, **call)
    with pytest.raises(ExpungeError, match="a method that wants none"):
        expunge.erase(backbone, "church", method="uce", images=own)
