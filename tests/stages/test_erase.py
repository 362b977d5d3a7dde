"""Images that an eraser wants: made by the model, or the user's own."""

import warnings
from dataclasses import asdict

import pytest
import torch
from PIL import Image

import expunge
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query, Start
from expunge.stages import erase, knowledge
from tiny import tiny_pipeline

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


def test_the_other_images_of_pairs_are_redrawn_from_the_first(backbone, tmp_path):
    eraser = erase.build("duo", {"pairs": 2, "prompt": "a {}", "strength": 0.5}, None)
    targets = [Concept(name="church", anchor="dog")]
    made = erase.prepared(backbone, eraser, targets, [], 3)
    unsafe, safe = made.images["unsafe"], made.images["safe"]
    assert [s.prompt for s in unsafe + safe] == ["a church"] * 2 + ["a dog"] * 2
    guidance, steps = 7.5, 50
    for i in (0, 1):
        start = Start(image=unsafe[i].pixels(), strength=0.5)
        how = {"negative": "a church", "start": start, "guidance": guidance, "steps": steps}
        query = Query(prompt="a dog", seed=made.number("images", "safe", i), **how)
        expected = backbone.generate([query]).pixels[0]
        assert (expected.int() - safe[i].pixels().int()).abs().max() <= 1
    own = folder_of(tmp_path / "own", (16, 16), (16, 16), (16, 16))
    half = erase.prepared(backbone, eraser, targets, [], 3, images={"unsafe": own})
    assert len(half.images["safe"]) == 3, "as many as there are to be redrawn"
    with pytest.raises(ExpungeError, match="for unsafe and safe: expected one for each"):
        expunge.erase(backbone, "church", method="duo", images=own)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("esd", {}, "for ESD, which aims at none"),
        ("kpop", {"goal": "esd", "iterations": 1}, "kpop's goal is ESD's"),
        ("sld", {}, "for SLD"),
    ],
)
def test_an_anchor_that_a_method_would_not_aim_at_is_refused(backbone, method, settings, words):
    with pytest.raises(ExpungeError, match=f"'church' with the anchor 'house'.*{words}"):
        expunge.erase(backbone, Concept(name="church", anchor="house"), method, settings=settings)


def test_words_to_keep_that_a_method_ignores_are_warned_of_and_not_known(backbone):
    with pytest.warns(
        ExpungeWarning, match=r"time ignores words to keep \('dog', 'radio', 'fish', …\): it does nothing for them"
    ):
        edit = expunge.erase(backbone, "church", "time", retain=["dog", "radio", "fish", "cat"])
    assert edit.provenance.retain == ["dog", "radio", "fish", "cat"], "as asked"
    assert knowledge.of_provenances([asdict(edit.provenance)])["retain"] == [], "and not as known"
    alone = expunge.erase(backbone, "church", "time").tensors()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in edit.tensors().items())
    with warnings.catch_warnings(record=True) as caught:
        told = expunge.erase(backbone, "church", "uce", retain="dog").provenance
    assert (told.retain, [str(w.message) for w in caught if "ignores" in str(w.message)]) == (["dog"], [])
    with pytest.raises(ExpungeError, match="'church' is both a target and a retained"):
        expunge.erase(backbone, "church", "time", retain="church")


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
        (own, ["church", "dog"], "for church and dog: expected one for each"),
        ({"castle": own}, "church", "unknown role of the images 'castle'"),
    ):
        with pytest.raises(ExpungeError, match=words):
            expunge.erase(backbone, targets, images=images, **call)
    with pytest.raises(ExpungeError, match="a method that wants none"):
        expunge.erase(backbone, "church", method="uce", images=own)
