"""An erasure looks at itself: on the testbed, and where no judge knows the words."""

import json
import warnings

import pytest
import torch

import expunge
from expunge import backbones
from expunge.cli import main
from expunge.core.edit import Weights
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.record import Interval
from expunge.stages import check


@pytest.fixture(scope="module")
def testbed():
    return backbones.load("testbed")


def shaken(backbone, size, group="xattn-strict"):
    """An edit that adds noise of ``size`` times their spread to weights."""
    generator = torch.Generator().manual_seed(0)
    base = backbone.tensors(backbone.group(group))
    changed = {n: w + size * w.std() * torch.randn(w.shape, generator=generator) for n, w in base.items() if w.ndim > 1}
    return backbone.edit_of(changed)


def test_a_good_edit_has_no_problems(testbed):
    edit = expunge.erase(
        testbed, "church", settings={"tokens": "tail", "anchor": "a picture"}, retain=["pizza", "banana"]
    )
    found = check.check(testbed, edit, ["church"], ["pizza", "banana"], images=3)
    assert found.problems == []
    assert found.shown.value <= 34
    assert found.kept_shown.value >= 60
    assert found.pictures == 100
    assert found.shown_before.value >= 60
    assert found.target_moved > 0.2 > 0.5 * found.kept_moved
    assert "church moved" in found.line()
    assert "pizza, banana moved" in found.line()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check.warn(found)


def test_an_edit_that_does_nothing_is_told(testbed):
    edit = expunge.erase(testbed, "church", settings={"erase_scale": 1e-6})
    found = check.check(testbed, edit, ["church"], ["pizza"], images=2)
    assert found.target_moved < 0.01
    with pytest.warns(ExpungeWarning, match=r"changes next to nothing: images of church moved by 0\.\d%"):
        check.warn(found)


def test_noise_and_harmed_neighbours_are_told_with_and_without_a_judge(testbed, monkeypatch):
    broken = shaken(testbed, 3.0, "full")
    found = check.check(testbed, broken, ["church"], ["pizza"], images=2)
    assert found.pictures < 90
    assert found.kept_shown.value <= found.kept_shown_before.value - 50
    assert [w for p in found.problems for w in ("pictures", "neighbours suffer") if w in p] == [
        "pictures",
        "neighbours suffer",
    ]
    blind = check.check(testbed, broken, ["a thing that no judge knows"], ["pizza"], images=2)
    assert blind.shown is None
    assert blind.kept_shown is None
    assert any("neighbours suffer: images of pizza moved by" in p for p in blind.problems)


@pytest.mark.parametrize("kind", ["noise", "decoded noise", "blank"])
def test_what_is_no_picture_is_rough_or_blank(testbed, kind):
    own = check.look(testbed, [], ["church", "dog", "radio", "fish"], 2)
    pictures = torch.cat(list(own.values()))
    generator = torch.Generator().manual_seed(0)
    other = {
        "noise": torch.randint(0, 256, pictures.shape, generator=generator).byte(),
        "decoded noise": testbed.decode(torch.randn(len(pictures), 4, 16, 16, generator=generator)),
        "blank": torch.full_like(pictures, 90),
    }[kind]
    assert check._pictures(None, pictures) == [True] * 8
    assert check._pictures(None, other) == [False] * 8


def test_a_target_that_moved_and_is_still_there_is_told(testbed):
    edit = shaken(testbed, 0.3)
    found = check.check(testbed, edit, ["pizza"], ["banana"], images=2)
    assert found.target_moved > check.STILL
    assert any("pizza is still shown in" in p for p in found.problems) == (found.shown.value > 50)
    none = {"shown_before": None, "kept_shown": None, "kept_shown_before": None}
    moved = {"target_moved": 0.5, "kept_moved": 0.1, "pictures": 100.0}
    told = check.Check(images=2, targets=["x"], kept=["y"], shown=Interval(75.0, 20.0, 99.0), **moved, **none)
    assert told.problems == ["x is still shown in 75 % of images (expected 50 % or less)"]


def test_neighbours_are_the_words_to_keep_or_everyday_ones():
    assert check.neighbours(["church"], ["castle", "house", "tent", "key"]) == ["castle", "house", "tent"]
    assert check.neighbours(["hot dog"], []) == ["house", "car", "apple"]
    assert check.neighbours(["church"], ["church tower"]) == ["dog", "house", "car"], "never none"
    assert check.neighbours(["art"], ["cart"]) == ["cart"]


def test_the_command_checks_itself(folder, tmp_path, capsys):
    asked = ["erase", "uce", "--target", "dog", "--model", str(folder), "--json"]
    assert main([*asked, "--out", str(tmp_path / "a")]) == 0
    assert json.loads(capsys.readouterr().out)["check"] is None, "not on a CPU, unless told how many images"
    assert main([*asked, "--out", str(tmp_path / "b"), "--check-images", "2"]) == 0
    seen = capsys.readouterr()
    told = json.loads(seen.out)["check"]
    assert told["images"] == 2
    assert told["targets"] == ["dog"]
    assert told["kept"] == ["house", "car", "apple"]
    assert all(line.startswith("expunge: warning: ") for line in seen.err.splitlines())
    assert len(told["problems"]) == len(seen.err.splitlines())
    for words, change in (
        ("with --no-check: expected one of the two", ["--check-images", "2", "--no-check"]),
        ("expected 2 or more", ["--check-images", "1"]),
        ("expected 2 or more", ["--check-images", "0"]),
    ):
        assert main([*asked, "--out", str(tmp_path / "d"), *change]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "d").exists()
    assert main([*asked, "--out", str(tmp_path / "e"), "--check-images", "2", "--judge", "nobody"]) == 0
    assert "the edit is written, and could not be looked at: unknown judge" in capsys.readouterr().err
    assert (tmp_path / "e" / "edit.safetensors").is_file()
    assert isinstance(expunge.load_edit(tmp_path / "b" / "edit.safetensors"), Weights)


def test_a_check_of_one_image_is_refused(testbed):
    with pytest.raises(ExpungeError, match="expected 2 or more"):
        check.check(testbed, shaken(testbed, 0.1), ["church"], images=1)
