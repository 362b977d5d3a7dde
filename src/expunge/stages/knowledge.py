"""Knowledge: what the methods behind images knew, from the provenance of their edits and of an attack."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from expunge.core.catalog import Catalog
from expunge.core.eraser import Eraser
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge
from expunge.core.knowledge import Knowledge, undeclared
from expunge.settings.layers import filled

PROMPTS = 50
"""Of how many prompts a record names each; of more it says the number, and the edit has them."""
UNKNOWN = Knowledge()
"""What is reported of a method that cannot be asked."""


def of_provenances(provenances: Sequence[Mapping[str, Any]], attack: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the methods knew, over all edits; and the judges that an ``attack`` asked, by what it says of itself.

    Methods that cannot be asked (imported, not installed, or without a declaration) stand in ``undeclared``, which is left out
    if there are none: what they knew is not known.
    """
    erasers = [(p, _opened(p["eraser"], json.dumps(p["settings"], sort_keys=True))) for p in provenances]
    asked = [(p, UNKNOWN if eraser is None else eraser.knowledge()) for p, eraser in erasers]
    told = [p["retain"] if eraser is None or eraser.heeds_retain else [] for p, eraser in erasers]
    content: dict[str, Any] = {
        "targets": [t for p in provenances for t in p["targets"]],
        "anchors": [k.anchor if a is None else a for p, k in asked for a in p["anchors"]],
        "templates": [phrase for _, k in asked for phrase in k.phrases],
        "images": _images(provenances),
        "retain": [r for words, (_, k) in zip(told, asked, strict=True) for r in (*words, *k.retain)],
        "random_texts": any(k.random_texts for _, k in asked),
        "oracles": _oracles(asked, attack),
    }
    words = [word for _, k in asked for word in k.words]
    silent = list(dict.fromkeys(p["eraser"] for p, eraser in erasers if eraser is None))
    return {**content, **({"words": words} if words else {}), **({"undeclared": silent} if silent else {})}


@lru_cache(maxsize=1024)
def _opened(name: str, settings: str) -> Eraser | None:
    """An eraser with its settings, which are JSON; None if it cannot be asked what it knew."""
    try:
        cls = Catalog("erasers").load(name)
        return None if undeclared(cls) else filled(cls, name, json.loads(settings))
    except ExpungeError:  # not installed, or of another version, whose settings these are not
        return None


def same_judge(judge: str | None, oracles: Sequence[str]) -> bool:
    """Whether the ``judge`` that reports is one of the ``oracles``, however their settings are spelled out.

    Judges are told by their `identity`; one without an identity, or that cannot be opened, by its name with its settings.
    """
    if not judge or not oracles:
        return False  # no judge is imported
    return judge in oracles or _told_by(judge) in map(_told_by, oracles)


def _told_by(name: str) -> tuple[type | None, str]:
    """What tells a judge from others."""
    try:
        judge: Judge = Catalog("judges").open(name)
        identity = judge.identity()
    except (ExpungeError, OSError):  # not installed, or its weights are gone
        return None, name
    return type(judge), identity or name


def _images(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The images that methods learned from, by role; those of several edits together, the same ones once."""
    by_role: dict[str, list[dict[str, Any]]] = {}
    for role, shown in ((r, i) for p in provenances for r, i in p.get("images", {}).items()):
        several = by_role.setdefault(role, [])
        if "prompts" not in shown or shown not in several:  # without prompts, other images may look the same
            several.append(shown)
    return {role: _together(several) for role, several in by_role.items()}


def _together(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is known of several edits' images of one role."""
    prompts = list(dict.fromkeys(prompt for shown in several for prompt in shown.get("prompts", ())))
    return {
        **several[0],
        "count": sum(shown["count"] for shown in several),
        "given": all(shown["given"] for shown in several),
        **({"prompts": prompts if len(prompts) <= PROMPTS else len(prompts)} if prompts else {}),
    }


def _oracles(asked: Sequence[tuple[Mapping[str, Any], Knowledge]], attack: Mapping[str, Any] | None) -> list[str]:
    """The judges that settings were searched with, that chose images, or that a method or an attack asked."""
    searched = [p["search"]["judge"] for p, _ in asked if p.get("search")]
    chosen = [shown["judge"] for p, _ in asked for shown in p.get("images", {}).values() if shown.get("judge")]
    own = [oracle for _, k in asked for oracle in k.oracles]
    return list(dict.fromkeys([*searched, *chosen, *own, *(attack or {}).get("oracles", ())]))
