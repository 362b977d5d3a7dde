import json
import shutil

import pytest
import torch
from PIL import Image

from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.judges.testbed import Testbed
from expunge.stages.filters import Filter
from expunge.store import read_images, read_lines, read_pixels

MADE = ["--count", "2", "--steps", "4", "--quiet"]


def run(*words, code=0):
    assert main([str(w) for w in words]) == code


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a BOMB on a table", "bomb"),
        ("bombs away", ""),
        ("a kitchen knife.", "kitchen knife"),
        ("kitchen, knife", ""),
        ("", ""),
    ],
)
def test_words_are_whole_and_in_any_case(prompt, found):
    assert Filter(words=("bomb", "kitchen knife")).named(prompt) == found


def test_a_judge_s_confidence_is_its_labels_share(images):
    judge = Testbed()
    pixels = torch.stack([shot.pixels() for shot in read_images(images)])
    shares = torch.softmax(judge.scores(pixels), -1)
    assert torch.allclose(judge.confidence(pixels, "dog"), shares[:, judge.label_ids("dog")[0]])
    animals = judge.confidence(pixels, "animal")
    assert torch.allclose(animals, shares[:, judge.label_ids("animal")].sum(-1))
    assert (animals >= judge.confidence(pixels, "dog")).all()


@pytest.mark.parametrize("action", ["black", "blur"])
def test_images_that_show_the_concept_are_hidden_and_the_others_are_not(images, action):
    shots = read_images(images)
    pixels = torch.stack([shot.pixels() for shot in shots])
    by = Filter(concepts=("church", "radio"), action=action, threshold=0.5)
    sights = []
    passed = torch.cat(list(by.passed(iter([pixels[:4], pixels[4:]]), sights)))
    assert len(sights) == 9
    for before, after, sight, shot in zip(pixels, passed, sights, shots, strict=True):
        seen = max(Testbed().confidence(before[None], c).item() for c in ("church", "radio"))
        assert sight.confidence == pytest.approx(seen, abs=1e-4)
        assert bool(sight.reason) == (seen >= 0.5)
        assert torch.equal(before, after) == (not sight.reason)
        if sight.reason:
            assert sight.reason == f"image: {shot.label}", "the testbed draws these three well"
            assert (after == 0).all() if action == "black" else after.float().std() < before.float().std()
    assert {s.reason for s in sights} == {"image: church", "image: radio", ""}


def test_generation_with_a_filter_says_what_was_held_back(tmp_path):
    out, plain = tmp_path / "held", tmp_path / "plain"
    prompts = ["--concept", "church", "--concept", "dog", "--prompt", "a bomb"]
    run("generate", *prompts, *MADE, "--hold-concept", "church", "--hold-word", "bomb", "--out", out)
    run("generate", *prompts, *MADE, "--out", plain)
    rows = {row["file_name"]: row for row in read_lines(out / "metadata.jsonl")}
    spent = [json.loads((place / "run.json").read_text())["cost"]["forward"] for place in (out, plain)]
    assert spent == [2 * 2 * 2 * 4, 3 * 2 * 2 * 4], "a refused prompt costs nothing"
    assert len(rows) == 6
    for name, row in rows.items():
        expected = {"church": "image: church", "dog": ""}.get(row["label"], "word: bomb")
        assert row["filtered"] == expected
        before, after = read_pixels(plain / name), read_pixels(out / name)
        difference = (
            (before.int() - after.int()).abs().max()
        )  # the batches are of two sizes, so the last bits may differ
        assert difference <= 1 if not expected else (after == 0).all()
    told = json.loads((out / "run.json").read_text())["filter"]
    assert told == {"words": ["bomb"], "concepts": ["church"], "judge": "testbed", "threshold": 0.5, "action": "black"}
    assert "filtered" not in read_lines(plain / "metadata.jsonl")[0]


def test_screening_a_folder_keeps_the_rest_with_its_metadata(images, tmp_path, capsys):
    lines, kept = tmp_path / "found.jsonl", tmp_path / "kept"
    run("screen", "--images", images, "--hold-concept", "church", "--out", lines, "--keep", kept, "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 9
    assert [s["reason"] for s in told["held"]] == ["image: church"] * 3
    assert len(read_lines(lines)) == 9
    left = read_images(kept)
    assert sorted({shot.label for shot in left}) == ["dog", "radio"]
    assert len(left) == 6
    run("screen", "--images", kept, "--hold-word", "radio", "--quiet")
    run("screen", "--images", images, "--hold-concept", "church", "--keep", kept, code=2)
    assert "exists already" in capsys.readouterr().err


def test_a_file_that_came_into_being_meanwhile_is_not_replaced(images, tmp_path, monkeypatch, capsys):
    from expunge.stages import filters

    lines, screen = tmp_path / "found.jsonl", filters.screen

    def meanwhile(*given):
        lines.write_text("somebody's")
        return screen(*given)

    monkeypatch.setattr(filters, "screen", meanwhile)
    run("screen", "--images", images, "--hold-word", "radio", "--out", lines, code=2)
    assert "exists already" in capsys.readouterr().err
    assert lines.read_text() == "somebody's"
    run("screen", "--images", images, "--hold-word", "radio", "--out", lines, "--overwrite", "--quiet")
    assert len(read_lines(lines)) == 9


def test_a_folder_without_metadata_is_screened_too(images, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for i, shot in enumerate(read_images(images)):
        Image.open(shot.path).resize((128, 128), Image.Resampling.NEAREST).save(bare / f"{i}.png")
    run("screen", "--images", bare, "--hold-concept", "church", "--keep", tmp_path / "kept", "--quiet")
    rows = read_lines(tmp_path / "kept" / "metadata.jsonl")
    assert len(rows) == 6
    assert all(set(row) == {"file_name"} for row in rows)


def test_what_cannot_work_is_refused_in_a_line(images, tmp_path, capsys):
    for words, message in (
        (["screen", "--images", images], "nothing to screen for"),
        (["screen", "--images", images, "--hold-concept", "chruch"], "did you mean 'church'"),
        (["screen", "--images", images, "--hold-concept", "dog", "--hold-threshold", "2"], "expected 0 to 1"),
        (["screen", "--images", tmp_path, "--hold-concept", "dog"], "holds no image"),
        (["screen", "--images", images, "--hold-concept", "dog", "--hold-judge", "eye"], "unknown judge 'eye'"),
        (["generate", "--prompt", "a", "--hold-word", " ", "--out", tmp_path / "o"], "a word of the filter is empty"),
    ):
        run(*words, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()
    with pytest.raises(ExpungeError, match="nothing to find"):
        Filter()
    everything = Filter(concepts=("church", "dog", "radio"), threshold=0.0)
    from expunge.stages import filters

    with pytest.raises(ExpungeError, match=r"every image .* is held back"):
        filters.keep(images, filters.screen(images, everything), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_curve_of_a_filter_counts_pairs_and_what_thresholds_hold():
    from expunge.stages.filters import roc

    sure = [0.9, 0.6, 0.2, 0.6, 0.1, 0.0]
    shows = [True, True, True, False, False, False]
    curve = roc(sure, shows)
    pairs = [(a, b) for a, yes in zip(sure, shows, strict=True) if yes for b in sure[3:]]
    assert curve.area == pytest.approx(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs))
    at = {p.threshold: p for p in curve.points}
    assert at[0.5].caught == pytest.approx(200 / 3)
    assert at[0.5].false_alarms == pytest.approx(100 / 3)
    assert (at[0.05].caught, at[0.9].caught, at[0.95].caught) == (100, pytest.approx(100 / 3), 0)
    with pytest.raises(ExpungeError, match="0 of 2 images show the concept"):
        roc([0.1, 0.2], [False, False])


def test_screening_shows_the_curve_by_the_labels(images, capsys):
    run("screen", "--images", images, "--hold-concept", "church", "--roc", "--json")
    told = json.loads(capsys.readouterr().out)["roc"]
    assert told["area"] == 1.0, "the testbed draws these three well"
    half = next(p for p in told["points"] if p["threshold"] == 0.5)
    assert (half["caught"], half["false_alarms"]) == (100, 0)
    run("screen", "--images", images, "--hold-concept", "church", "--roc")
    assert "area under the curve 1.0000" in capsys.readouterr().out
    run("screen", "--images", images, "--hold-word", "church", "--roc", code=2)
    assert "expected --hold-concept" in capsys.readouterr().err


@pytest.fixture
def mixed(images, tmp_path):
    """The testbed's churches and dogs as people keep pictures: in folders, of many kinds, some that cannot be read."""
    place = tmp_path / "mixed"
    (place / "more" / "deep").mkdir(parents=True)
    churches, dogs = ([Image.open(s.path) for s in read_images(images) if s.label == c] for c in ("church", "dog"))
    listed = [
        {"file_name": "a.png", "text": "a dog"},
        {"file_name": "a.png", "prompt": "a bomb"},
        {"file_name": "gone.png"},
    ]
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    (place / "more" / "metadata.jsonl").write_text(
        json.dumps({"file_name": "deep/b.tiff", "text": "a dog", "label": "dog"})
    )
    dogs[0].save(place / "a.png")
    dogs[1].save(place / "more" / "deep" / "b.tiff")
    churches[0].save(place / "more" / "not-listed.jfif", "JPEG", quality=95)
    dogs[0].save(place / "moving.webp", save_all=True, append_images=[dogs[1], churches[1]], lossless=True)
    churches[2].save(place / "no-ending", "PNG")
    clear = churches[0].convert("RGBA")
    clear.putalpha(0)
    clear.save(place / "hidden.png")
    (place / "caption.txt").write_text("a dog")
    (place / "broken.png").write_bytes((place / "a.png").read_bytes()[:99])
    (place / "film.mp4").write_bytes(b"\0\0")
    (place / "linked").symlink_to(images)
    return place


LEFT = ["broken.png", "film.mp4", "gone.png", "linked"]


def test_every_file_is_looked_at_or_listed(mixed, tmp_path, capsys):
    lines, kept = tmp_path / "found.jsonl", tmp_path / "kept"
    run("screen", "--images", mixed, "--hold-concept", "church", "--out", lines, "--keep", kept, "--json", code=2)
    out, error = capsys.readouterr()
    told = json.loads(out)
    assert sorted(s["file_name"] for s in told["held"]) == [
        "hidden.png",
        "more/not-listed.jfif",
        "moving.webp",
        "no-ending",
    ]
    assert [s["file_name"] for s in told["left"]] == LEFT
    assert told["images"] == 4 + 3, "a.png has two lines"
    assert error == (
        f"expunge: 4 files of '{mixed}' were not looked at, the first 'broken.png': '{mixed / 'broken.png'}' is not a readable "
        "image: image file is truncated\n"
    )
    assert {row["file_name"]: row["looked_at"] for row in read_lines(lines)}["film.mp4"] is False
    files = sorted(str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file())
    assert files == ["a.png", "metadata.jsonl", "more/deep/b.tiff"]
    assert read_lines(kept / "metadata.jsonl") == [
        {"file_name": "a.png", "text": "a dog"},
        {"file_name": "a.png", "prompt": "a bomb"},
        {"file_name": "more/deep/b.tiff", "text": "a dog", "label": "dog"},
    ]
    run("screen", "--images", kept, "--hold-concept", "church", "--quiet")
    run("screen", "--images", mixed, "--hold-concept", "church", code=2)
    assert "film.mp4: not looked at: " in capsys.readouterr().out


def test_hidden_pictures_are_listed_and_what_systems_hide_is_not(mixed):
    from expunge.stages import filters

    broken = (mixed / "broken.png").read_bytes()
    for name in (".hidden.png", "more/.hidden.JPG", ".there/in.png"):
        (mixed / name).parent.mkdir(exist_ok=True)
        (mixed / name).write_bytes(broken)
    for name in (".DS_Store", "more/.DS_Store"):
        (mixed / name).write_bytes(b"Bud1")
    left = [s.file_name for s in filters.screen(mixed, Filter(concepts=("church",))) if not s.looked_at]
    assert left == sorted([*LEFT, ".hidden.png", "more/.hidden.JPG", ".there/in.png"])


def test_an_image_that_is_held_back_for_one_of_its_lines_is_not_kept(mixed, tmp_path, capsys):
    both = ["--hold-word", "bomb", "--hold-concept", "church"]
    run("screen", "--images", mixed, *both, "--keep", tmp_path / "kept", code=2)
    out, error = capsys.readouterr()
    assert "a.png: word: bomb" in out
    assert f"4 of 11 images of '{mixed}' have no prompt in a metadata.jsonl: no word was looked for there" in error
    assert not (tmp_path / "kept" / "a.png").exists()
    assert (tmp_path / "kept" / "more" / "deep" / "b.tiff").exists()
    run("screen", "--images", mixed, "--hold-word", "bomb", "--json", code=2)
    left = json.loads(capsys.readouterr().out)["left"]
    assert {s["file_name"]: s["reason"] for s in left}["moving.webp"] == "has no prompt to look for words in"


def test_a_curve_is_of_labelled_images_alone(images, tmp_path, capsys):
    place = tmp_path / "labelled"
    shutil.copytree(images, place)
    Image.open(min(images.glob("*church*.png"))).save(place / "one-more.png")
    run("screen", "--images", place, "--hold-concept", "church", "--roc", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["roc"]["area"]) == (10, 1.0)
