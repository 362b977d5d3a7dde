"""A search finds the weakest strength that reaches its goal, on the testbed."""

import json

import pytest

from expunge import backbones
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.core.record import Interval
from expunge.erasers.kpop import KPOP
from expunge.erasers.sld import SLD
from expunge.erasers.uce import UCE
from expunge.stages.search import Goal, Tried, following, search
from expunge.store import load_edit

GOAL = Goal(erased=90.0, lost=5.0, images=3)


def tried(times, esr, lost):
    return Tried(float(times), {}, Interval(float(esr), 0.0, 100.0), Interval(80.0, 0.0, 100.0), float(lost), 0)


def test_the_next_strength_is_more_less_or_between():
    assert following([tried(1, 20, 0)], GOAL) == 2
    assert following([tried(1, 20, 0), tried(2, 50, 0)], GOAL) == 4
    assert following([tried(1, 95, 20)], GOAL) == 0.5
    assert following([tried(1, 95, 20), tried(0.5, 50, 3)], GOAL) == pytest.approx(0.5**0.5)
    assert following([tried(1, 95, 20), tried(0.95, 50, 3)], GOAL) is None
    assert tried(1, 80, 9).misses(GOAL) == 10 + 4
    assert tried(1, 91, 5).misses(GOAL) == 0


def test_goals_are_read_or_refused_in_a_line():
    assert Goal.parsed(["esr@1=0.97"]) == Goal(erased=97.0, lost=5.0)
    assert Goal.parsed(["psr@1=-0.1", "esr@1=0.9"]) == Goal(erased=90.0, lost=10.0)
    for goals in (["esr@1=97"], ["esr@1=0.9", "psr@1=0.05"], ["psr@1=-0.1"], ["fid=3"], ["esr@1"]):
        with pytest.raises(ExpungeError, match="no goal: expected"):
            Goal.parsed(goals)
    with pytest.raises(ExpungeError, match="budget is 0"):
        Goal.parsed(["esr@1=0.9"], budget=0)


def test_strengths_of_methods():
    assert UCE(erase_scale=0.5).stronger(4.0).erase_scale == 2.0
    assert KPOP(iterations=150).stronger(0.5).iterations == 75
    assert KPOP(iterations=1).stronger(0.1).iterations == 1
    assert SLD(level="medium").stronger(2.0).level == "strong"
    assert SLD(level="weak").stronger(0.5) is None


def test_a_search_begins_weak_and_stops_where_the_goal_is_reached():
    backbone = backbones.load("testbed")
    eraser = UCE(tokens="tail", anchor="a picture", erase_scale=1e-4)
    seen = []
    found = search(backbone, "uce", eraser, [Concept(name="church")], ["pizza", "banana"],
                   Goal(erased=90.0, lost=40.0, images=3, budget=1), on_tried=seen.append)  # fmt: skip
    assert not found.reached
    assert len(found.tried) == len(seen) == 1
    assert "not reached" in found.told()
    assert found.best.esr.value < 90
    eraser = UCE(tokens="tail", anchor="a picture", erase_scale=0.5)
    found = search(backbone, "uce", eraser, [Concept(name="church")], ["pizza", "banana"],
                   Goal(erased=90.0, lost=40.0, images=3))  # fmt: skip
    assert found.reached
    assert found.best.esr.value >= 90
    assert found.best.lost <= 40
    assert found.edit.provenance.settings["erase_scale"] == found.best.settings["erase_scale"]
    assert "* chosen" in found.told()
    assert not backbone.edits


def test_the_command_searches(tmp_path, capsys):
    asked = ["erase", "uce", "--target", "church", "--retain", "pizza", "--no-check", "--json", "--budget", "2"]
    assert main([*asked, "--until", "esr@1=0.5", "--until", "psr@1=-0.9", "--out", str(tmp_path / "a")]) == 0
    told = json.loads(capsys.readouterr().out)["search"]
    assert told["reached"]
    assert told["chosen"]["times"] == 1.0
    assert len(told["tried"]) == 1
    assert load_edit(tmp_path / "a" / "edit.safetensors").provenance.settings == told["chosen"]["settings"]
    for words, change in (
        ("is no goal", ["--until", "nonsense"]),
        ("does not know all of", ["--until", "esr@1=0.9", "--target", "a happy day"]),
        ("unknown judge", ["--until", "esr@1=0.9", "--judge", "nobody"]),
    ):
        assert main([*asked, *change, "--out", str(tmp_path / "b")]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "b").exists()
    assert (
        main(["erase", "negative-prompt", "--target", "church", "--until", "esr@1=0.9", "--out", str(tmp_path / "b")])
        == 2
    )
    assert "has no strength to search" in capsys.readouterr().err
