"""What a person chose, as a plan: a concept erased, then attacked, or two edits side by side at several strengths."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from expunge import testbed
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, check_targets, fill, same_words
from expunge.core.errors import ExpungeError, unknown
from expunge.results.files import SUMMARY
from expunge.settings import presets
from expunge.store.atomic import new_file
from expunge.store.toml import toml
from expunge.web import forms
from expunge.web.served import OURS, TESTBED, WRITTEN, Served

ORIGINAL = "original"
SET = "set.toml"
"""The concept set of a run, beside its plan."""
SPLIT = "erased"
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""At which two edits are compared; at 0 there is the model as it is."""
JUDGES = {"imagenet": "ImageNet's classes", "nudenet": "nudity", "none": "nobody: only how far images moved"}
"""Who may look at the images of a model other than the testbed, and what it knows."""
COUNTS = range(1, 21)
"""Images a concept."""
MOST_WORDS, LONGEST = 12, 80
NEIGHBOURS = 3
FIRST_SEED = {"dev": 50_000, "test": 1_000}


@final
@dataclass(frozen=True, kw_only=True)
class Wish:
    """An erasure, as somebody asks for it."""

    concept: str
    method: str
    words: Mapping[str, str] = field(default_factory=dict)
    """Settings as they were typed, by the names of `forms.fields`."""
    model: str = TESTBED
    keep: Sequence[str] = ()
    """What is looked at beside the concept."""
    told: bool = True
    """Whether the method is told to keep that."""
    count: int = 4
    """Images a concept."""
    judge: str = "none"
    """Of `JUDGES`; the testbed has its own."""


def concepts() -> list[str]:
    """The objects that the testbed draws."""
    return sorted(testbed.vocabulary()["objects"])


def neighbours(concept: str) -> list[str]:
    """What the testbed draws of the same kind, to look at beside ``concept``."""
    return testbed.near([concept])[:NEIGHBOURS]


# erasing --------------------------------------------------------------------------------------------------------------
def erasure(wish: Wish, served: Served) -> str:
    """Write the plan of an erasure into a new run, whose name is given.

    Raises:
        ExpungeError: for anything in it that cannot be, before a file is written.
    """
    words = _words(wish, served)
    settings = forms.settings("erasers", wish.method, wish.words, served)
    known = Catalog("erasers").entry(wish.method).literals
    for name in ("erase_from", *(n for n, kind in known.get("knows", {}).items() if kind == "anchor")):
        if same_words(str(settings.get(name, "")), words[0]):
            raise ExpungeError(
                f"{wish.method}'s {name} is '{settings[name]}', which is itself erased: expected another"
            )
    told = wish.told and not known.get("ignores_retain", False)
    row: dict[str, Any] = {"eraser": wish.method, "retain": told, "settings": settings}
    if known.get("has_key", False):
        row["controls"] = ["own"]
    own = served.is_testbed(wish.model)
    name = served.new_run(f"{wish.concept} {wish.method}")
    plan: dict[str, Any] = {
        "about": f"{words[0]}: erased by {wish.method}, asked for on the page.",
        "model": wish.model,
        "set": f"{name}/{SET}",
        "splits": {SPLIT: [words[0]]},
        "count": wish.count,
        "control_count": wish.count,
        "metrics": _metrics(own, wish.judge),
        "grid": {"method": [ORIGINAL, wish.method]},
        "method": {wish.method: row},
    }
    _write(served.run(name) / SET, _set(words, presets.template("testbed" if own else "sd")))
    write_plan(served.run(name), plan)
    return name


def _words(wish: Wish, served: Served) -> list[str]:
    """The concept and what is kept, checked."""
    served.check_model(wish.model)
    if wish.count not in COUNTS:
        raise ExpungeError(f"{wish.count} images of each concept: expected {COUNTS[0]} to {COUNTS[-1]}")
    words = [" ".join(word.split()) for word in (wish.concept, *wish.keep)]
    check_targets([Concept(name=words[0])], words[1:])
    if len(set(words)) < len(words) or len(words) > MOST_WORDS + 1:
        raise ExpungeError(f"{len(words) - 1} words to keep: expected at most {MOST_WORDS}, each once")
    for word in words:
        if len(word) > LONGEST or not word.isprintable():
            raise ExpungeError(f"the words {word[:LONGEST]!r}: expected at most {LONGEST} printable letters")
        if served.is_testbed(wish.model) and word not in testbed.vocabulary()["objects"]:
            raise unknown("object of the testbed", word, testbed.vocabulary()["objects"])
    if not served.is_testbed(wish.model) and wish.judge not in JUDGES:
        raise unknown("judge", wish.judge, JUDGES)
    return words


def _metrics(own: bool, judge: str) -> list[dict[str, str]]:
    """What is measured: what a judge sees, or else how far images moved."""
    if own:
        return [{"name": "esr-psr"}]
    if judge == "none":
        return [{"name": "prior-distance"}]
    if Catalog("judges").entry(judge).literals.get("ranks", True):
        return [{"name": "esr-psr", "judge": judge}]
    return [{"name": "dsr", "judge": judge}, {"name": "confidence", "judge": judge}]


def _set(words: Sequence[str], template: str) -> dict[str, Any]:
    """A concept set of one prompt a word."""
    prompts = {word: [fill(template, word)] for word in words}
    parts = {part: {"seed": seed, "prompts": prompts} for part, seed in FIRST_SEED.items()}
    return {"about": "What somebody asked for on the page.", "concepts": list(words), **parts}


# attacking ------------------------------------------------------------------------------------------------------------
def attacked(name: str, attack: str, words: Mapping[str, str], served: Served, *, instead: bool = False) -> None:
    """Have the plan of a run attack what it erased; what is finished of it is kept.

    Args:
        name: the run.
        attack: catalog name.
        words: settings as they were typed.
        served: where the run is.
        instead: of the attack that was added last, unless it was measured: the run was refused with it.

    Raises:
        ExpungeError: if the run is not one of the page's, or for a setting that cannot be.
    """
    settings = forms.settings("attacks", attack, words, served)
    plan = read_plan(name, served)
    before = plan.get("attacks", [])
    if instead and before and not _measured(served.run(name), before[-1]["name"]):
        before = before[:-1]
    others = [one for one in before if one.get("name") != attack]
    write_plan(served.run(name), {**plan, "attacks": [*others, {"name": attack, **settings}]})


def _measured(folder: Path, attack: str) -> bool:
    """Whether a run has numbers under an attack."""
    file = folder / SUMMARY
    return file.is_file() and f'"attack: {attack}' in file.read_text(encoding="utf-8")


# comparing ------------------------------------------------------------------------------------------------------------
def comparison(names: Sequence[str], count: int, served: Served) -> str:
    """Write the plan that shows the edits of two runs at several strengths on equal seeds; the new run's name is given.

    Raises:
        ExpungeError: if they are not two erasures of one concept from one model.
    """
    if len(names) != 2 or names[0] == names[1]:
        raise ExpungeError("one run beside itself: expected two runs to compare")
    if count not in COUNTS:
        raise ExpungeError(f"{count} images of each concept: expected {COUNTS[0]} to {COUNTS[-1]}")
    one, other = (read_plan(name, served) for name in names)
    if (one["model"], one["splits"]) != (other["model"], other["splits"]):
        raise ExpungeError(f"'{names[0]}' and '{names[1]}' erase other things, or from other models: expected the same")
    rows: dict[str, Any] = {}
    for name, plan in zip(names, (one, other), strict=True):
        [(_, method)] = plan["method"].items()
        kept = [word for word in _kept(plan, served) if method["retain"] is True]
        told = {**method, "retain": kept or False, "controls": []}
        if not Catalog("erasers").entry(method["eraser"]).literals.get("has_key", False):
            del told["controls"]
        scales = Catalog("erasers").entry(method["eraser"]).literals.get("scales", True)
        for strength in STRENGTHS if scales else STRENGTHS[-1:]:
            rows[row_at(name, strength)] = {**told, "strength": strength}
    made = served.new_run(f"{names[0].partition('/')[2]} or {names[1].partition('/')[2]}")
    plan = {k: v for k, v in one.items() if k != "attacks"}
    plan |= {
        "about": f"{names[0]} beside {names[1]}, at several strengths.",
        "set": f"{made}/{SET}",
        "count": count,
        "grid": {"method": [ORIGINAL, *rows]},
        "method": rows,
    }
    _write(served.run(made) / SET, tomllib.loads((served.root / one["set"]).read_text(encoding="utf-8")))
    write_plan(served.run(made), plan)
    return made


def row_at(name: str, strength: float) -> str:
    """What a row of a comparison is called."""
    return f"{name.partition('/')[2]} at {strength:g}"


def _kept(plan: Mapping[str, Any], served: Served) -> list[str]:
    """The concepts of a plan's set that are not erased."""
    said = tomllib.loads((served.inside(plan["set"])).read_text(encoding="utf-8"))
    gone = {word for words in plan["splits"].values() for word in words}
    return [word for word in said["concepts"] if word not in gone]


# files ----------------------------------------------------------------------------------------------------------------
def read_plan(name: str, served: Served) -> dict[str, Any]:
    """The plan that the page wrote for a run.

    Raises:
        ExpungeError: if it is not one of the page's, or what it says was damaged.
    """
    file = served.run(name) / WRITTEN
    if not name.startswith(f"{OURS}/") or not file.is_file():
        raise ExpungeError(f"run '{name}' was not made on this page: expected one that was")
    try:
        plan = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(f"the plan of '{name}' is damaged: {error}") from error
    lost = [entry for entry in ("model", "set", "splits", "method", "grid") if entry not in plan]
    if lost:
        raise ExpungeError(f"the plan of '{name}' is damaged: expected it to say its {lost[0]}")
    return plan


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write a run's plan, whole or not at all."""
    _write(folder / WRITTEN, plan)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    with new_file(file, overwrite=True) as temporary:
        temporary.write_text(toml(content), encoding="utf-8")
