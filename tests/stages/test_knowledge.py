"""What records say that methods knew: computed by hand here, as the function before this one did by the names of settings."""

import json
from dataclasses import dataclass

import pytest

from expunge.core.analysis import Analysis, Findings, Study, averaged
from expunge.core.catalog import Catalog
from expunge.core.concept import OBJECT_TEMPLATES
from expunge.core.edit import Provenance
from expunge.core.eraser import settings_of
from expunge.core.knowledge import Knowledge, undeclared
from expunge.erasers.sld import UNSAFE
from expunge.stages import analyse, erase, knowledge

EXPECTED = [
    ("uce", {}, "", ["{}"], False),
    ("uce", {"anchor": "cat", "templates": ["a {}", "the {}"]}, "cat", ["a {}", "the {}"], False),
    ("debias", {}, None, ["{}"], False),
    ("debias", {"attributes": ["ink style", "tile style"], "prompt": "a {}"}, None, ["a {}"], False),
    ("rece", {}, " ", ["{}"], False),
    ("rece", {"anchor": "cat", "templates": ["a {}"]}, "cat", ["a {}"], False),
    ("time", {}, "", ["{}", "A photo of {}", "An image of {}", "A picture of {}"], False),
    ("time", {"anchor": "cat", "templates": ["a {}"]}, "cat", ["a {}"], False),
    ("esd", {}, None, ["{}"], False),
    ("esd", {"goal": "port", "erase_from": "cat", "templates": ["my {}"]}, None, ["my {}"], False),
    ("kpop", {}, "a photo", ["{}"], False),
    ("kpop", {"neutral": "", "retain_random": 0.5}, "", ["{}"], True),
    ("kpop", {"goal": "esd", "neutral": "cat", "templates": ["a {}"], "retain_random": 1.0}, None, ["a {}"], True),
    ("leco", {}, "", ["{}"], False),
    ("leco", {"neutral": "street", "templates": ["a {}"]}, "street", ["a {}"], False),
    ("spm", {}, "", [], False),
    ("spm", {"surrogate": "wall", "anchors": 2}, "wall", [], False),
    ("sld", {}, None, [], False),
    ("sld", {"concept": "unsafe"}, None, [], False),
    ("negative-prompt", {}, None, [], False),
    ("few-shot", {}, None, list(OBJECT_TEMPLATES), False),
    ("few-shot", {"source": "uniform", "templates": ["a {}"]}, None, ["a {}"], False),
    ("ca", {}, "", [], False),
    ("ca", {"anchor": "cat", "prompts": ["a {}"]}, "cat", [], False),
    ("adv-unlearn", {"kept": ["cat", "cup"]}, None, ["{}", "a photo of a {}"], False),
    ("sdd", {"roles": "paper"}, None, [], False),
    ("eiup", {"weight": -2.0}, None, [], False),
    ("gie", {"weight": -3.0}, None, ["{}", "a photo of {}", "an image of {}"], True),
    ("gie", {"templates": ["a {}"], "random": 0.0}, None, ["a {}"], False),
    ("forget-me-not", {}, None, ["a photo of {}"], False),
    ("selective-amnesia", {}, "", ["a photo of {}"], False),
    ("selective-amnesia", {"surrogate": "cat", "retain_prompt": "{}", "replay": ["a hill"]}, "cat", ["{}"], False),
    ("geom-erasing", {"form": "data"}, None, [], False),
    ("duo", {}, "", [], False),
    ("duo", {"anchor": "cat", "base_random": 7.0}, "cat", [], True),
]

HEED = {"uce", "debias", "rece", "esd", "kpop", "adv-unlearn", "gie", "selective-amnesia"}
"""Methods that learn to keep words; others are asked to in vain."""


def provenance(method, settings, anchors=(None, "own"), **more):
    """As an edit's header has it: pure JSON."""
    own = {"targets": ["church", "bomb"], "anchors": list(anchors), "retain": ["dog"]}
    return json.loads(json.dumps({"eraser": method, "settings": settings, **own, **more}))


def test_every_eraser_of_the_catalog_is_expected():
    assert {name for name, *_ in EXPECTED} == set(Catalog("erasers").entries())


@pytest.mark.parametrize(("method", "settings", "anchor", "templates", "random"), EXPECTED)
def test_records_say_what_each_eraser_knew(method, settings, anchor, templates, random):
    told = settings_of(erase.build(method, settings, None))
    known = knowledge.of_provenances([provenance(method, told)])
    assert json.dumps(known) == json.dumps(
        {
            "targets": ["church", "bomb"],
            "anchors": [anchor, "own"],
            "templates": templates,
            "images": {},
            "retain": [*(["dog"] if method in HEED else []), *told.get("kept", []), *told.get("replay", [])],
            "random_texts": random,
            "oracles": [told["judge"]] if "judge" in told else [],
            **({"words": told["attributes"]} if told.get("attributes") else {}),
            **({"words": UNSAFE.split(", ")} if settings == {"concept": "unsafe"} else {}),
        }
    )


def test_several_edits_know_what_each_of_them_knew():
    shown = {"count": 3, "given": True, "judge": "testbed", "prompts": ["a bomb"]}
    first = provenance("few-shot", {"templates": ["a {}"]}, images={"church": shown})
    second = provenance("kpop", {"retain_random": 0.1}, search={"judge": "testbed:network=b"}, images={"church": shown})
    known = knowledge.of_provenances([first, second], {"oracles": ["imagenet", "testbed"]})
    assert known["templates"] == ["a {}", "{}"]
    assert known["anchors"] == [None, "own", "a photo", "own"]
    assert known["images"] == {"church": shown}, "the same images once"
    assert known["random_texts"] is True
    assert known["oracles"] == ["testbed:network=b", "testbed", "imagenet"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("imported", {"imported": "x.safetensors", "sha256": "0"}),
        ("uce", {"imported": "x.safetensors", "sha256": "0"}),
        ("uce", {"of_a_later_version": 1}),
        ("somebody-elses", {"templates": ["a {}"], "retain_random": 1.0}),
    ],
)
def test_a_method_that_cannot_be_asked_is_named(method, settings):
    known = knowledge.of_provenances([provenance("esd", {}), provenance(method, settings)])
    assert known["undeclared"] == [method]
    assert known["templates"] == ["{}"], "that of the other one"


@pytest.mark.parametrize(
    ("judge", "oracles", "same"),
    [
        ("testbed", ["testbed"], True),
        ("testbed", ["imagenet:weights=random", "testbed:network=a"], True),
        ("testbed:labels=objects,network=b", ["testbed:network=b"], True),
        ("testbed", ["testbed:network=b"], False),
        ("nobody", ["nobody"], True),
        ("nobody", ["nobody:labels=x"], False),
        ("testbed", ["nobody"], False),
        (None, ["testbed"], False),
    ],
)
def test_judges_are_the_same_however_their_settings_are_spelled_out(judge, oracles, same):
    assert knowledge.same_judge(judge, oracles) is same


def test_without_an_oracle_no_judge_is_imported(monkeypatch):
    monkeypatch.setattr(Catalog, "open", lambda *_: pytest.fail("a judge was opened"))
    assert knowledge.same_judge("testbed", []) is False


@dataclass(frozen=True, kw_only=True)
class Looking(Analysis):
    """Finds one number."""

    judge: str = "testbed"

    def findings(self, backbone, study):
        return Findings(measurements=[averaged("m", [("church", 0.5), ("church", 0.7)], 1)], figures={})

    def images(self, targets, retain, eraser):
        return 0


@pytest.mark.parametrize(("searched_by", "same"), [("testbed:network=a", True), ("testbed:network=b", False)])
def test_an_analysis_says_if_its_judge_is_the_one_that_settings_were_searched_with(
    backbone, tmp_path, searched_by, same
):
    made = {"eraser": "uce", "settings": {}, "targets": ["church"], "anchors": [None], "retain": []}
    of_edit = Provenance(**made, model="m", family="sd", seed=0, search={"judge": searched_by})
    study = Study(targets=["church"], retain=[], prompt=str, guidance=1.0, steps=1, batch=1)
    ((record, _),) = analyse.run(backbone, "looking", Looking(), study, [of_edit], tmp_path)
    assert record.knowledge["same_judge"] is same


THIRD_PARTY = """
from dataclasses import dataclass
from expunge.core.eraser import Eraser


@dataclass(frozen=True, kw_only=True)
class Silent(Eraser):
    lr: float = 1.0
    hints: tuple[str, ...] = ("a {}",)
    judge: str = "testbed"

    def steps(self, backbone, task, resume=None):
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Told(Silent):
    knows = {"hints": "words", "judge": "oracles"}
    tuning = ()


@dataclass(frozen=True, kw_only=True)
class Half(Told):
    knows = {"hints": "words"}
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Another package's erasers, announced as its own metadata does: ``silent``, ``told`` and ``half``."""
    (tmp_path / "third_party.py").write_text(THIRD_PARTY)
    about = tmp_path / "third_party-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    points = "".join(f"{name.lower()} = third_party:{name}\n" for name in ("Silent", "Told", "Half"))
    (about / "entry_points.txt").write_text(f"[expunge.erasers]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_class_that_declares_nothing_leaves_every_setting_open(installed):
    silent, told, half = (Catalog("erasers").load(name) for name in ("silent", "told", "half"))
    assert undeclared(silent) == ["hints", "judge", "lr"]
    assert undeclared(told) == [], "a learning rate needs no declaration"
    assert undeclared(half) == ["judge"]
    assert told(hints=("x", "y")).knowledge() == Knowledge(words=("x", "y"), oracles=("testbed",))


def test_what_another_package_s_method_knows_comes_into_records(installed):
    known = knowledge.of_provenances([provenance("told", {"hints": ["gun"], "judge": "imagenet"})])
    assert (known["words"], known["oracles"]) == (["gun"], ["imagenet"])
    assert "undeclared" not in known
    for name in ("silent", "half"):
        assert knowledge.of_provenances([provenance(name, {})])["undeclared"] == [name]
