"""What records say that methods knew: computed by hand here, as the function before this one did by the names of settings."""

import json

import pytest

from expunge.core.catalog import Catalog
from expunge.core.concept import OBJECT_TEMPLATES
from expunge.core.eraser import settings_of
from expunge.core.knowledge import Knowledge, undeclared
from expunge.stages import erase, knowledge

EXPECTED = [
    ("uce", {}, "", ["{}"], False),
    ("uce", {"anchor": "cat", "templates": ["a {}", "the {}"]}, "cat", ["a {}", "the {}"], False),
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
    ("duo", {}, "", [], False),
    ("duo", {"anchor": "cat", "base_random": 7.0}, "cat", [], True),
]


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
            "retain": ["dog"],
            "random_texts": random,
            "oracles": [],
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
