"""A search finds the weakest strength that reaches its goal, on the testbed."""

import json

import pytest

from expunge import backbones
from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.eraser import settings_of
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.record import Interval
from expunge.erasers.uce import UCE
from expunge.stages import erase
from expunge.stages.search import Goal, Tried, following, goal_of, search
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
    assert following([tried(1, 20, 9)], GOAL) is None, "more would lose more"
    assert following([tried(16, 20, 0)], GOAL) is None, "strong enough to stop"
    assert tried(1, 80, 9).misses(GOAL) == 10 + 4
    assert tried(1, 91, 5).misses(GOAL) == 0


def test_goals_are_read_or_refused_in_a_line():
    assert goal_of(["esr@1=0.97"]) == Goal(erased=97.0, lost=5.0)
    assert goal_of([" psr@1=-0.1", "esr@1=0.9"], 3) == Goal(erased=90.0, lost=10.0, budget=3)
    for words in (["esr@1=97"], ["esr@1=0.9", "psr@1=0.05"], ["psr@1=-0.1"], ["fid=3"], ["esr@1"]):
        with pytest.raises(ExpungeError, match="no goal: expected"):
            goal_of(words)
    with pytest.raises(ExpungeError, match="budget is 0"):
        goal_of(["esr@1=0.9"], 0)


STRENGTHS = {"kpop": "iterations", "esd": "iterations", "ca": "iterations", "leco": "iterations", "spm": "iterations",
             "few-shot": "epochs", "uce": "erase_scale", "sld": "level", "negative-prompt": None, "duo": "beta",
             "sdd": "iterations", "forget-me-not": "iterations", "eiup": "weight", "gie": "weight", "time": "lamb",
             "rece": "erase_scale", "debias": None, "adv-unlearn": "iterations", "geom-erasing": "iterations",
             "selective-amnesia": "iterations"}  # fmt: skip

DOWNWARDS = {"duo", "time"}
"""Of these a smaller number is stronger: less that pulls back."""


@pytest.mark.parametrize("name", Catalog("erasers").entries())
def test_every_method_has_a_strength_or_says_it_has_none(name):
    eraser, field = Catalog("erasers").load(name)(), STRENGTHS[name]
    more, less = eraser.stronger(2.0), eraser.stronger(0.5)
    if field is None:
        assert more is less is None
        return
    found = [getattr(e, field) for e in (less, eraser, more)]
    found = found[::-1] if name in DOWNWARDS else found
    if name == "sld":
        assert found == ["weak", "medium", "strong"]
    else:
        half = found[1] / 2
        assert found == [round(half) if isinstance(found[1], int) else half, found[1], found[1] * 2]
    others = {k: v for k, v in settings_of(more).items() if k not in (field, "warmup")}
    assert others == {k: v for k, v in settings_of(eraser).items() if k not in (field, "warmup")}
    assert (
        name in DOWNWARDS
        or eraser.stronger(1e-6) is None
        or getattr(eraser.stronger(1e-6), field) in (1, pytest.approx(0, abs=1e-5))
    )


def test_a_search_stops_where_the_goal_is_reached_or_says_that_it_was_not():
    backbone = backbones.load("testbed")
    eraser = UCE(tokens="tail", anchor="a picture", erase_scale=1e-4)
    seen = []
    with pytest.warns(ExpungeWarning, match="goal was not reached in 1 tries: ESR-1"):
        found = search(backbone, "uce", eraser, [Concept(name="church")], ["pizza", "banana"],
                       Goal(erased=90.0, lost=40.0, images=1, budget=1), on_tried=seen.append)  # fmt: skip
    assert not found.reached
    assert len(found.tried) == len(seen) == 1
    assert "not reached" in found.table()
    assert found.best.esr.value < 90
    eraser = UCE(tokens="tail", anchor="a picture", erase_scale=0.5)
    found = search(backbone, "uce", eraser, [Concept(name="church")], ["pizza", "banana"],
                   Goal(erased=90.0, lost=40.0, images=3))  # fmt: skip
    assert found.reached
    assert found.best.esr.value >= 90
    assert found.best.lost <= 40
    assert found.edit.provenance.settings["erase_scale"] == found.best.settings["erase_scale"]
    assert "* chosen" in found.table()
    made = found.edit.provenance.search
    assert made["judge"] == "testbed:network=b", "not the judge that reports"
    assert [t["times"] for t in made["tried"]] == [1.0]
    assert not backbone.edits


def test_the_command_searches(folder, tmp_path, capsys):
    asked = ["erase", "uce", "--target", "church", "--retain", "pizza", "--no-check", "--json", "--budget", "2"]
    assert main([*asked, "--until", "esr@1=0.5", "--until", "psr@1=-0.9", "--out", str(tmp_path / "a")]) == 0
    told = json.loads(capsys.readouterr().out)["search"]
    assert told["reached"]
    assert told["chosen"]["times"] == 1.0
    assert len(told["tried"]) == 1
    assert load_edit(tmp_path / "a" / "edit.safetensors").provenance.settings == told["chosen"]["settings"]
    for words, change in (
        ("is no goal", ["--until", "nonsense"]),
        ("does not know 'a happy day'", ["--until", "esr@1=0.9", "--target", "a happy day"]),
        ("no judge is named", ["--until", "esr@1=0.9", "--model", str(folder)]),
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


def test_a_strength_is_tried_once_and_the_cost_is_that_of_all_tries():
    """SLD has four levels, and every strength between two of them is one of the two."""
    backbone = backbones.load("testbed")
    eraser = erase.build("sld", {"level": "max"}, None)
    seen = []
    with pytest.warns(ExpungeWarning, match="not reached"):
        found = search(backbone, "sld", eraser, [Concept(name="church")], ["pizza"],
               Goal(erased=99.9, lost=-0.5, images=2, budget=8), on_tried=seen.append)  # fmt: skip
    pair, triple = 2 * 8 * 2, 3 * 8 * 2  # evaluations of two images of 8 steps, guided, and with SLD's third
    assert found.edit.provenance.cost.equivalents == 2 * pair + len(seen) * 2 * triple, "the images of all tries"
    assert set(found.edit.provenance.search["shown_before"]) == {"church", "pizza"}
    levels = [t.settings["level"] for t in seen]
    assert levels == ["max", "strong"]


def test_a_search_says_what_the_model_draws_too_seldom_to_tell():
    """The dog was erased before: that a further edit's model does not show it tells little."""
    backbone = backbones.load("testbed")
    eraser = UCE(tokens="tail", anchor="a picture")
    backbone.attach(erase.run(backbone, "uce", eraser, [Concept(name="dog")], []))
    with pytest.warns(ExpungeWarning, match=r"dog is drawn in \d+ % of the model's own images: no measure"):
        search(backbone, "uce", eraser, [Concept(name="dog")], ["castle"],
               Goal(erased=0.0, lost=100.0, images=2, budget=1))  # fmt: skip
