"""An erasure looks at itself: on the testbed, and where no judge knows the words."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import expunge
from expunge import backbones
from expunge.cli import main
from expunge.core.edit import Weights
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.record import Interval
from expunge.stages import check
from expunge.stages.verdict import Check, Seen
from expunge.testbed import WELL_DRAWN, vocabulary
from tiny import tiny_flux_pipeline

SCORES = Path(__file__).parents[2] / "benchmarks" / "testbed.json"


@pytest.fixture(scope="module")
def testbed():
    return backbones.load("testbed")


def shaken(backbone, size, group="xattn-strict"):
    """An edit that adds noise of ``size`` times their spread to weights."""
    generator = torch.Generator().manual_seed(0)
    base = backbone.tensors(backbone.group(group))
    changed = {n: w + size * w.std() * torch.randn(w.shape, generator=generator) for n, w in base.items() if w.ndim > 1}
    return backbone.edit_of(changed)


def test_a_good_edit_is_told_in_one_line_with_judge_and_number(testbed):
    edit = expunge.erase(
        testbed, "church", settings={"tokens": "tail", "anchor": "a picture"}, retain=["castle", "house"]
    )
    found = check.check(testbed, edit, ["church"], ["castle", "house"], images=3)
    assert found.problems == []
    assert found.outcome == "gone"
    assert found.pictures == found.pictures_before == 100
    (church,) = found.targets
    assert church.moved > 0.2
    assert found.line() == "church: shown in 100 -> 0 %; castle, house kept 100 -> 100 % (judge testbed, n = 3 a word)"
    assert json.loads(json.dumps(found.as_json()))["targets"][0]["after"] == church.after._asdict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check.warn(found)


def test_on_flux_an_edit_that_acts_through_a_pair_is_looked_at_with_one():
    backbone = backbones.of(tiny_flux_pipeline())
    edit = expunge.erase(backbone, "church", "negative-prompt")
    assert check.check(backbone, edit, ["church"], ["castle"], images=2).targets[0].moved > 0
    assert check.pair_for(backbone, [edit]) == 4.0
    assert check.pair_for(backbone, []) == 1.0


def test_an_edit_that_does_nothing_is_told(testbed):
    edit = expunge.erase(testbed, "church", settings={"erase_scale": 1e-7})
    found = check.check(testbed, edit, ["church"], ["castle"], images=2)
    assert found.targets[0].moved < 0.01
    assert found.outcome == "unchanged"
    assert found.line().startswith("church: shown in 100 -> 100 %, still there, unchanged; castle kept")
    with pytest.warns(ExpungeWarning, match=r"changes next to nothing: images of church moved by 0\.\d %"):
        check.warn(found)
    unjudged = check.check(testbed, edit, ["a thing that no judge knows"], ["castle"], images=2)
    assert unjudged.outcome == "unchanged"
    assert "a thing that no judge knows: unchanged, images moved by 0 %" in unjudged.line()


def test_noise_and_harmed_neighbours_are_told_with_and_without_a_judge(testbed):
    broken = shaken(testbed, 3.0, "full")
    found = check.check(testbed, broken, ["church"], ["castle"], images=2)
    assert found.pictures < 90
    assert found.loss.after <= found.loss.before - 50
    assert found.outcome == "ruined"
    assert found.line().startswith("images are ruined: ")
    assert "; neighbours suffer (judge testbed" in found.line()
    assert [w for p in found.problems for w in ("pictures", "neighbours suffer") if w in p] == [
        "pictures",
        "neighbours suffer",
    ]
    blind = check.check(testbed, broken, ["a thing that no judge knows"], ["nor this"], images=2)
    assert blind.judge is None
    assert blind.loss is None
    assert "(no judge told, n = 2 a word)" in blind.line()
    assert any("neighbours suffer: images of nor this moved by" in p for p in blind.problems)
    some = check.check(testbed, broken, ["a thing that no judge knows"], ["castle"], images=2)
    assert some.targets[0].before is None
    assert "castle kept 100 -> " in some.line()
    assert "judge testbed, which does not know a thing that no judge knows, n = 2" in some.line()


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


def percent(value):
    return Interval(float(value), 0.0, 100.0)


def seen(word, before, after, moved=0.5):
    return Seen(
        word=word,
        moved=moved,
        before=None if before is None else percent(before),
        after=None if after is None else percent(after),
    )


def verdict(targets, kept=(), judge="testbed", pictures=100.0, before=100.0, more=0):
    looked = {"targets": targets, "kept": kept, "judge": judge}
    return Check(images=4, pictures=pictures, pictures_before=before, more=more, **looked)


@pytest.mark.parametrize(
    ("found", "outcome", "line"),
    [
        (
            verdict([seen("church", 100, 10)], [seen("castle", 100, 100), seen("house", 100, 96)]),
            "gone",
            "church: shown in 100 -> 10 %; castle, house kept 100 -> 98 % (judge testbed, n = 4 a word)",
        ),
        (
            verdict([seen("church", 100, 0), seen("tent", 100, 75)], [seen("apple", 50, 50)], more=2),
            "still shown",
            "church: shown in 100 -> 0 %; tent: shown in 100 -> 75 %, still there; 2 more targets not looked at; "
            "apple is drawn in 50 % before: no measure (judge testbed, n = 4 a word)",
        ),
        (
            verdict([seen("dog", 50, 0)], [seen("house", 100, 50)]),
            "no measure",
            "dog is drawn in 50 % before, 0 % after: no measure (images moved by 50 % of the difference between two seeds); "
            "house kept 100 -> 50 %; neighbours suffer (judge testbed, n = 4 a word)",
        ),
        (
            verdict([seen("joy", None, None)], [seen("a day", None, None, 0.1)], judge=None),
            "no judge",
            "joy: images moved by 50 % of the difference between two seeds; a day: images moved by 10 % of the difference "
            "between two seeds (no judge told, n = 4 a word)",
        ),
        (
            verdict([seen("church", 100, 0)], [seen("house", 100, 100)], pictures=60.0),
            "ruined",
            "images are ruined: 60 % are pictures, before 100 %; church: shown in 100 -> 0 %; house kept 100 -> 100 % "
            "(judge testbed, n = 4 a word)",
        ),
        (
            verdict([seen("church", None, None)], judge=None, pictures=20.0, before=20.0),
            "no judge",
            "20 % of the model's own images are pictures: no measure; church: images moved by 50 % of the difference "
            "between two seeds (no judge told, n = 4 a word)",
        ),
    ],
)
def test_the_verdict_says_what_was_seen_and_no_more(found, outcome, line):
    assert found.line() == line
    assert found.outcome == outcome
    assert found.as_json()["verdict"] == line
    assert "removed" not in line


@pytest.mark.parametrize("after", [50, 20])
def test_a_target_that_some_images_still_show_is_not_gone(after):
    found = verdict([seen("church", 100, 0), seen("tent", 100, after)])
    assert found.outcome == "partly shown"
    assert f"tent: shown in 100 -> {after} %, partly still there" in found.line()
    assert found.problems == [f"tent is still shown in {after} % of images (expected 10 % or less)"]


def test_targets_that_nobody_looked_at_are_not_gone():
    found = verdict([seen("church", 100, 0)], more=4)
    assert found.outcome == "not all looked at"
    assert found.line() == "church: shown in 100 -> 0 %; 4 more targets not looked at (judge testbed, n = 4 a word)"
    assert verdict([seen("church", 100, 75)], more=4).outcome == "still shown"


def test_what_is_wrong_is_said_of_each_target():
    told = verdict([seen("x", 100, 0), seen("y", 100, 75)])
    assert told.problems == ["y is still shown in 75 % of images (expected 10 % or less)"]


def test_neighbours_are_the_words_to_keep_or_everyday_ones():
    assert check.neighbours(["church"], ["castle", "house", "tent", "key"]) == ["castle", "house", "tent"]
    assert check.neighbours(["hot dog"], []) == ["house", "car", "apple"]
    assert check.neighbours(["church"], ["church tower"]) == ["dog", "house", "car"], "never none"
    assert check.neighbours(["art"], ["cart"]) == ["cart"]


def test_the_testbed_s_neighbours_are_near_in_kind_drawn_well_and_no_target(testbed):
    assert check.neighbours(["church"], [], "testbed") == ["house", "castle", "ferris wheel"]
    objects = vocabulary()["objects"]
    for target in [*objects, "weapon", "animal", "kitten", "van gogh style"]:
        found = check.neighbours([target], [], "testbed")
        assert len(found) == 3, target
        for word in found:
            assert word in WELL_DRAWN
            assert target not in (word, objects[word]["category"], *objects[word]["keywords"])
    drawn = json.loads(SCORES.read_text())["detail"]["object_top1_by_object"]
    assert all(drawn[word] == 100 for word in WELL_DRAWN)
    looked = check.look(testbed, [], check.neighbours(["church"], [], "testbed"), 4)
    judge = check.judge_of("testbed", list(looked))
    assert all(all(check.shown(judge, word, images)) for word, images in looked.items())


def test_the_command_checks_itself(folder, tmp_path, capsys):
    asked = ["erase", "uce", "--target", "dog", "--model", str(folder), "--json"]
    assert main([*asked, "--out", str(tmp_path / "a")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["check"] is None, "not on a CPU, unless told how many images"
    assert (told["verdict"], told["outcome"]) == (
        "edit written; not looked at: --check-images 2 looks",
        "not looked at",
    )
    assert main([*asked, "--out", str(tmp_path / "b"), "--check-images", "2"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    told = result["check"]
    assert told["images"] == 2
    assert [word["word"] for word in told["targets"]] == ["dog"]
    assert [word["word"] for word in told["kept"]] == ["house", "car", "apple"]
    assert told["judge"] is None
    assert (result["verdict"], result["outcome"]) == (told["verdict"], told["outcome"])
    assert all(line.startswith("expunge: warning: ") for line in said.err.splitlines())
    assert len(told["problems"]) == len(said.err.splitlines())
    beside = json.loads((tmp_path / "b" / "check.json").read_text())
    assert beside == {"format": 1, "edit": result["id"], **told}
    for words, change in (
        ("with --no-check: expected one of the two", ["--check-images", "2", "--no-check"]),
        ("expected 2 or more", ["--check-images", "1"]),
        ("expected 2 or more", ["--check-images", "0"]),
    ):
        assert main([*asked, "--out", str(tmp_path / "d"), *change]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "d").exists()
    assert main([*asked, "--out", str(tmp_path / "e"), "--check-images", "2", "--judge", "nobody"]) == 0
    assert "edit written; could not be looked at: unknown judge" in capsys.readouterr().err
    assert (tmp_path / "e" / "edit.safetensors").is_file()
    assert isinstance(expunge.load_edit(tmp_path / "b" / "edit.safetensors"), Weights)


def test_a_check_of_one_image_is_refused(testbed):
    with pytest.raises(ExpungeError, match="expected 2 or more"):
        check.check(testbed, shaken(testbed, 0.1), ["church"], images=1)


def test_what_the_command_prints_is_never_that_something_was_removed(tmp_path, capsys):
    """A good edit, one that does nothing, and one that nobody looked at: exit code 0, with the verdict as the last line."""
    asked = ["erase", "uce", "--target", "church", "--retain", "castle"]
    assert main([*asked, "--check-images", "2", "--out", str(tmp_path / "good")]) == 0
    good = capsys.readouterr().out
    assert (
        good.splitlines()[-1] == "church: shown in 100 -> 0 %; castle kept 100 -> 100 % (judge testbed, n = 2 a word)"
    )
    weak = ["--erase-scale", "1e-6", "--check-images", "2"]
    assert main([*asked, *weak, "--out", str(tmp_path / "weak")]) == 0
    said = capsys.readouterr()
    assert "church: shown in 100 -> 100 %, still there, unchanged" in said.out.splitlines()[-1]
    assert "expunge: warning: the edit changes next to nothing" in said.err
    assert main([*asked, "--no-check", "--out", str(tmp_path / "blind")]) == 0
    blind = capsys.readouterr().out
    assert blind.splitlines()[-1] == "edit written; not looked at (--no-check)"
    assert not (tmp_path / "blind" / "check.json").exists()
    for text in (good, said.out, blind):
        assert "removed" not in text
        assert text.count("\n") == 2
    assert main(["show", str(tmp_path / "weak" / "edit.safetensors")]) == 0
    assert "verdict" in capsys.readouterr().out
