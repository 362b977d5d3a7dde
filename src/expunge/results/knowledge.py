"""What methods were told beside their targets' names: methods are to be ranked within equal knowledge."""

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.results.finished import Finished
from expunge.store.listing import ROLES

Images = Mapping[str, Mapping[str, Any]]
"""Images that a method learned from, by their role, as a record's knowledge has them."""
RETAINED, PAIRS = "retain list", "pairs given"
"""Kinds of knowledge of which words tell how many."""
KINDS = (
    *("anchor", "phrases", "words", RETAINED, "random texts", PAIRS, "images given", "images made", "oracle"),
    "unknown",
)
"""What a method may have been told beside names, in the order in which tables say it."""


def knowledge(finished: Sequence[Finished]) -> dict[str, str]:
    """What each edited row was told, in words, by its first measurement on the plan's own set."""
    words: dict[str, str] = {}
    for one in finished:
        if one.group.kind == "set" and one.method not in words and one.records:
            known = one.records[0]["knowledge"]
            if known["targets"]:
                words[one.method] = in_words(known)
    return words


def in_words(known: Mapping[str, Any]) -> str:
    """A record's knowledge in a few words; empty for a method that was told names alone.

    It ends in ``unknown`` where a method could not be asked, so that there may be more.
    """
    counted = {RETAINED: f"{len(known['retain'])} kept", PAIRS: f"{_pairs(known.get('images', {}))} pairs given"}
    return ", ".join(counted.get(kind, kind) for kind in kinds(known))


def kinds(known: Mapping[str, Any]) -> list[str]:
    """Those of `KINDS` that a record's method was told."""
    images = known.get("images", {})
    pairs = _pairs(images)
    says = (
        any(known["anchors"]),
        any(template != "{}" for template in known["templates"]),
        known.get("words"),
        known["retain"],
        known["random_texts"],
        pairs,
        not pairs and any(shown["given"] for shown in images.values()),
        any(not shown["given"] for shown in images.values()),
        known["oracles"],
        known.get("undeclared"),
    )
    return [kind for kind, so in zip(KINDS, says, strict=True) if so]


def _pairs(images: Images) -> int:
    """How many pairs a method was given."""
    given = set(images) == set(ROLES) and all(shown["given"] for shown in images.values())
    return images[ROLES[0]]["count"] if given else 0
