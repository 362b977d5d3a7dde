import json

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
