"""What a person chose becomes a plan that the real reader takes, and what cannot be is refused before a file is written."""

import tomllib

import pytest

from expunge.core.errors import ExpungeError
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.read import read_plan
from expunge.web import forms, wishes
from expunge.web.wishes import Wish


def opened(served, name, monkeypatch):
    """A plan of the page, read and checked as `expunge bench` does."""
    monkeypatch.chdir(served.root)
    return checked(read_plan(served.root / name / "plan.toml"))


NEEDED = {"selective-amnesia": {"surrogate": "a picture"}, "debias": {"attributes": "red\nblue"}}
"""Settings without which a method does not begin."""


@pytest.mark.parametrize("method", sorted(set(forms.plug_ins("erasers")) - {"geom-erasing"}))  # no plan gives it boxes
def test_the_plan_of_every_method_can_be_run(method, served, monkeypatch):
    words = NEEDED.get(method, {})
    name = wishes.erasure(Wish(concept="fish", method=method, keep=["dog", "umbrella"], count=2, words=words), served)
    read = opened(served, name, monkeypatch)
    assert list(read.plan.grid.method) == ["original", method]
    assert read.plan.method[method].retain is not read.erasers[method].ignores_retain
    assert read.splits == {"erased": ("fish",)}
    assert [p for p, _ in read.prompts()] == ["image of a fish", "image of a dog", "image of an umbrella"]
    if method == "kpop":
        assert read.controls("kpop", ["fish"]) == ("own",)


def test_settings_and_what_is_kept_reach_the_plan(served, monkeypatch):
    wish = Wish(concept="fish", method="uce", keep=["dog"], told=False, count=3, words={"lamb": "0.25"})
    read = opened(served, wishes.erasure(wish, served), monkeypatch)
    assert read.plan.method["uce"].retain is False
    assert read.erasers["uce"].lamb == 0.25
    assert read.plan.count == 3


def test_an_attack_is_added_to_the_plan_once(served, monkeypatch):
    name = wishes.erasure(Wish(concept="fish", method="uce", keep=["dog"]), served)
    wishes.attacked(name, "rounding", {}, served)
    wishes.attacked(name, "seed-search", {}, served)
    wishes.attacked(
        name,
        "rounding",
        {"bits": "5"} if "bits" in {f.name for f in forms.fields("attacks", "rounding")} else {},
        served,
    )
    read = opened(served, name, monkeypatch)
    assert [a.name for a in read.attacks] == ["seed-search", "rounding"]


def test_two_edits_are_compared_from_the_jobs_that_made_them(served, monkeypatch):
    """The comparison's erasures have the keys of the runs' own, so that nothing is erased again."""
    names = [wishes.erasure(Wish(concept="fish", method=m, keep=["dog"]), served) for m in ("uce", "kpop", "sld")]
    both = wishes.comparison(names[:2], 2, served)
    read = opened(served, both, monkeypatch)
    rows = [f"{name.partition('/')[2]} at {s}" for name in names[:2] for s in ("0.25", "0.5", "0.75", "1")]
    assert list(read.plan.grid.method) == ["original", *rows]
    of = [opened(served, name, monkeypatch) for name in names[:2]]
    own = {
        up.key for one in of for m in expanded(one) for up in m.job.upstream for up in up.upstream if up.room == "erase"
    }
    theirs = {up.key for m in expanded(read) for up in m.job.upstream for up in up.upstream if up.room == "erase"}
    assert theirs == own
    one_strength = wishes.read_plan(wishes.comparison([names[0], names[2]], 1, served), served)
    assert "fish-sld at 0.5" not in one_strength["method"]
    assert "fish-sld at 1" in one_strength["method"]


def test_what_does_not_go_together_is_not_compared(served):
    fish = wishes.erasure(Wish(concept="fish", method="uce"), served)
    church = wishes.erasure(Wish(concept="church", method="uce"), served)
    with pytest.raises(ExpungeError, match="erase other things"):
        wishes.comparison([fish, church], 1, served)
    with pytest.raises(ExpungeError, match="expected two runs"):
        wishes.comparison([fish, fish], 1, served)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"concept": ""}, "target is empty"),
        ({"concept": "unicorn"}, "unknown object of the testbed 'unicorn'"),
        ({"keep": ["fish"]}, "both a target and a retained word"),
        ({"keep": ["dog", "dog"]}, "each once"),
        ({"keep": ["dog"] * 40}, "at most 12"),
        ({"method": "uze"}, "did you mean 'uce'"),
        ({"method": ""}, "unknown eraser"),
        ({"count": 0}, "expected 1 to 20"),
        ({"model": "../model"}, "within the served folder"),
        ({"model": "owner/name"}, "no model 'owner/name'"),
        ({"words": {"lamb": "x"}}, "expected a number"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_in_a_line_and_leaves_nothing(changes, line, served):
    with pytest.raises(ExpungeError, match=line) as told:
        wishes.erasure(Wish(**{"concept": "fish", "method": "uce", **changes}), served)
    assert "\n" not in str(told.value)
    assert not list(served.root.rglob("*.toml"))


def test_a_model_of_another_kind_has_its_own_words_and_judge(served, monkeypatch):
    model = served.root / "models" / "mine"
    model.mkdir(parents=True)
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    wish = Wish(concept="an old <b>town</b>", method="uce", model="./models/mine", keep=["a lake"])
    plan = wishes.read_plan(wishes.erasure(wish, served), served)
    assert plan["metrics"] == [{"name": "prior-distance"}]
    said = tomllib.loads((served.root / plan["set"]).read_text())
    assert said["test"]["prompts"]["a lake"] == ["image of a lake"]
    with pytest.raises(ExpungeError, match="unknown judge"):
        wishes.erasure(Wish(**{**vars(wish), "judge": "/etc/passwd"}), served)


def test_a_run_of_the_command_line_is_not_changed(served):
    (served.root / "bench" / "mine").mkdir(parents=True)
    (served.root / "bench" / "mine" / "plan.json").write_text("{}")
    with pytest.raises(ExpungeError, match="was not made on this page"):
        wishes.attacked("bench/mine", "rounding", {}, served)


def test_a_concept_is_taken_without_the_spaces_around_it(served, monkeypatch):
    read = opened(served, wishes.erasure(Wish(concept=" fish ", method="uce", keep=["dog"]), served), monkeypatch)
    assert read.splits == {"erased": ("fish",)}


def test_a_detector_is_asked_whether_it_sees_something_and_for_no_rank():
    assert [one["name"] for one in wishes._metrics(False, "nudenet")] == ["dsr", "confidence"]
    assert wishes._metrics(False, "imagenet") == [{"name": "esr-psr", "judge": "imagenet"}]
