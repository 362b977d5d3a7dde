"""Images that a method wants, as a thing of their own: the same bits as an erasure makes for itself, and the same cost."""

import gc
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image

import expunge
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Marked, Redrawn, Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query, Start
from expunge.erasers.uce import UCE
from expunge.settings import presets
from expunge.stages import erase, wanted
from expunge.store import read_images, read_lines, read_run

SETTINGS = {"shots": 2, "epochs": 1, "lr": 1e-3}
TARGETS = [Concept(name="church"), Concept(name="dog")]


@pytest.fixture
def quick(monkeypatch):
    """Three denoising steps, and two images at a time."""
    monkeypatch.setitem(presets._presets()["generate"], "sd", {**presets._presets()["generate"]["sd"], "steps": 3})


def by_hand(backbone, role, prompts, seed, salt="", starts=None, **more):
    """All images in one batch of two at a time, in memory: what an erasure held before."""
    task = Task(targets=(), seed=seed, salt=salt)
    asked = [
        Query(
            prompt=prompt,
            seed=task.number("images", role, i),
            guidance=7.5,
            steps=3,
            start=None if starts is None else Start(image=starts[i], strength=0.5),
            **more,
        )
        for i, prompt in enumerate(prompts)
    ]
    return torch.cat([backbone.generate(asked[i : i + 2]).pixels for i in range(0, len(asked), 2)])


def test_a_folder_of_wanted_images_holds_the_bits_that_were_held_in_memory(backbone, quick, tmp_path):
    prompts = ["a church", "my church", "a church"]
    before = backbone.cost
    folder = wanted.make(backbone, "church", prompts, 3, "salt", tmp_path / "church")
    spent = backbone.cost - before
    shots = read_images(folder)
    expected = by_hand(backbone, "church", prompts, 3, "salt")
    assert torch.equal(torch.stack([s.pixels() for s in shots]), expected)
    assert [s.prompt for s in shots] == prompts
    run = read_run(folder)
    assert Cost(**run["cost"]) == spent == Cost(forward=3 * 2 * 3)
    assert run["wanted"]["role"] == "church"
    assert "salt" not in (folder / "run.json").read_text(), "a secret is not written down"
    rows = read_lines(folder / "metadata.jsonl")
    assert {(row["guidance"], row["steps"], row["label"]) for row in rows} == {(7.5, 3, None)}


def test_redrawn_images_start_from_those_of_another_role(backbone, quick, tmp_path):
    wishes = [Redrawn("a dog", of="unsafe", strength=0.5, negative="a church")] * 2
    unsafe = wanted.make(backbone, "unsafe", ["a church"] * 3, 1, "", tmp_path / "unsafe")
    sources = {"unsafe": read_images(unsafe)}
    safe = wanted.make(backbone, "safe", wishes, 1, "", tmp_path / "safe", sources)
    starts = [s.pixels() for s in sources["unsafe"]]
    expected = by_hand(backbone, "safe", ["a dog"] * 3, 1, starts=starts, negative="a church")
    assert torch.equal(torch.stack([s.pixels() for s in read_images(safe)]), expected), "as many as there are sources"
    with pytest.raises(ExpungeError, match="images for 'safe' are made from those for 'unsafe': expected these first"):
        wanted.make(backbone, "safe", wishes, 1, "", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("few-shot", SETTINGS),
        ("duo", {"iterations": 2, "batch": 2, "pairs": 2, "rank": 2, "prompt": "a {}", "anchor": "cat"}),
    ],
)
def test_an_erasure_with_its_own_images_from_a_folder_is_the_one_without(backbone, quick, tmp_path, method, settings):
    eraser = erase.build(method, settings, None)
    alone = erase.run(backbone, method, eraser, TARGETS[:1], [], 4)
    folders, sources, spent = {}, {}, Cost()
    for role, wishes in eraser.needs(TARGETS[:1]).items():
        folders[role] = wanted.make(backbone, role, wishes, 4, "", tmp_path / role, sources)
        sources[role] = read_images(folders[role])
        spent += Cost(**read_run(folders[role])["cost"])
    before = backbone.cost
    shared = erase.run(backbone, method, eraser, TARGETS[:1], [], 4, images=folders)
    assert shared.id == alone.id, "tensors and what the edit says of itself, bit for bit"
    assert shared.provenance.images == alone.provenance.images
    assert all(not images["given"] for images in shared.provenance.images.values())
    assert shared.provenance.cost == alone.provenance.cost == backbone.cost - before + spent
    other = erase.run(backbone, method, eraser, TARGETS[:1], [], 5, images=folders)
    assert all(images["given"] for images in other.provenance.images.values()), "of another seed, so not its own"
    assert other.provenance.cost == alone.provenance.cost - spent


def test_what_a_folder_was_made_with_tells_whose_it_is(backbone, quick, tmp_path):
    needs = {"church": ["a church"]}
    folder = wanted.make(backbone, "church", needs["church"], 1, "x", tmp_path / "church")
    cost = Cost(**read_run(folder)["cost"])

    def own(model=backbone, seed=1, salt="x", needs=needs):
        return wanted.own(model, Task(targets=[], seed=seed, salt=salt), needs, {"church": folder})

    assert {role: made.cost for role, made in own().items()} == {"church": cost}
    assert own(seed=2) == own(salt="y") == own(needs={"church": ["my church"]}) == {}
    edit = erase.run(backbone, "uce", UCE(anchor="cat"), TARGETS[:1], [])
    with backbone.attached([edit]):
        assert own() == {}, "the model was another"
    assert wanted.is_made(folder)
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    assert not wanted.is_made(tmp_path)
    assert wanted.own(backbone, Task(targets=[]), needs, {"church": tmp_path}) == {}


def test_images_are_read_one_by_one_and_their_folder_goes_with_the_last(backbone, quick):
    def temporary():
        return {
            p for p in Path(tempfile.gettempdir()).glob("expunge-wanted-*") if any(p.rglob("*a-photo-of-a-church*"))
        }

    before = temporary()
    task = erase.prepared(backbone, erase.build("few-shot", SETTINGS, None), TARGETS, [], 0)
    shot = task.images["church"][0]
    assert shot.path.is_file()
    assert shot.pixels() is not shot.pixels(), "read anew each time"
    assert len(temporary() - before) == 1
    del task
    gc.collect()
    assert shot.pixels().shape == (16, 16, 3), "there for as long as somebody may look"
    del shot
    gc.collect()
    assert temporary() == before


@dataclass(frozen=True, kw_only=True)
class Painting(Eraser):
    """Wants images of a concept with marks on them."""

    knows: ClassVar[Mapping] = {}
    tuning: ClassVar[Sequence[str]] = ("marks",)
    marks: str = "boxes"

    def needs(self, targets):
        return {t.name: [Marked(f"a {t.name}", self.marks)] for t in targets}

    def steps(self, backbone, task, resume=None):
        yield from UCE(anchor="cat").steps(backbone, task, resume)


def test_images_with_marks_are_the_user_s_and_have_them(backbone, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    Image.new("RGB", (16, 32)).save(own / "a.png")
    Image.new("L", (16, 32), 255).save(own / "m.png")
    line = {"file_name": "a.png", "prompt": "a church", "seed": 0}

    def prepared(marks, **row):
        (own / "metadata.jsonl").write_text(json.dumps({**line, **row}) + "\n")
        return erase.prepared(backbone, Painting(marks=marks), TARGETS[:1], [], 0, images={"church": own})

    (shot,) = prepared("boxes", objects={"bbox": [[0, 8, 8, 16]], "categories": ["church"]}).images["church"]
    assert shot.boxes == ((0.0, 0.0, 8.0, 16.0, "church"),), "as the image is cut to the model's size"
    outer = {"bbox": [[0, 0, 8, 4]]}  # of the 8 rows at each end that are cut off
    with pytest.raises(ExpungeError, match="has no box left, since its boxes are cut off with the edge of the image"):
        prepared("boxes", objects=outer)
    (shot,) = prepared("boxes", objects={"bbox": [*outer["bbox"], [0, 20, 8, 12]]}).images["church"]
    assert shot.boxes == ((0.0, 12.0, 8.0, 4.0, None),), "what is left of one that reaches into the middle"
    (shot,) = prepared("mask", mask_file_name="m.png").images["church"]
    assert bool(shot.mask().all())
    assert shot.mask().shape == backbone.image_size
    for marks, words in (
        ("boxes", "has no boxes: expected objects with a bbox"),
        ("mask", "has no mask: expected a mask_file"),
    ):
        with pytest.raises(ExpungeError, match=words):
            prepared(marks, label=None)
        with pytest.raises(
            ExpungeError, match=f"images for 'church' need {marks}, which no model makes: expected a folder"
        ):
            erase.prepared(backbone, Painting(marks=marks), TARGETS[:1], [], 0)


def test_what_is_made_for_a_user_s_erasure_costs_as_before(backbone, quick):
    edit = expunge.erase(backbone, "church", method="few-shot", settings=SETTINGS)
    assert asdict(edit.provenance.cost) == {"forward": 2 * 2 * 3, "trained": 2}
