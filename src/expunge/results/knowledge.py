"""What methods were told beside their targets' names: methods are to be ranked within equal knowledge."""

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.results.finished import Finished
from expunge.store.listing import ROLES

Images = Mapping[str, Mapping[str, Any]]
"""Images that a method learned from, by their role, as a record's knowledge has them."""


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
    kept, images = len(known["retain"]), known.get("images", {})
    pairs = _pairs(images)
    says = {
        "anchor": any(known["anchors"]),
        "phrases": any(template != "{}" for template in known["templates"]),
        "words": known.get("words"),
        f"{kept} kept": kept,
        "random texts": known["random_texts"],
        f"{pairs} pairs given": pairs,
        "images given": not pairs and any(shown["given"] for shown in images.values()),
        "images made": any(not shown["given"] for shown in images.values()),
        "oracle": known["oracles"],
        "unknown": known.get("undeclared"),
    }
    return ", ".join(word for word, so in says.items() if so)


def _pairs(images: Images) -> int:
    """How many pairs a method was given."""
    given = set(images) == set(ROLES) and all(shown["given"] for shown in images.values())
    return images[ROLES[0]]["count"] if given else 0
