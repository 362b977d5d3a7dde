"""What metrics say of their own numbers: in words, how near is equal, and which of them stand in a table.

Metrics declare it (`core.metric.Metric`), and the catalog reads that from their source, so that none is imported here. Beside
them this room knows two numbers of its own: what a key brought back, and counts of detections.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from expunge.core.catalog import Catalog
from expunge.results.group import Group

RECOVERY = "recovery"
"""What a paired difference calls the share of images that a key brought back."""
RECOVERY_MARGIN = 5.0
"""Points within which two recoveries are equal (design.md section 5)."""
MISSED = ("esr@1", "dsr")
"""Numbers that count images without the target, the first that a run has."""
DETECTIONS = "detections"
"""What the row of a summary is called that counts detections by their labels."""


def plain(metric: str) -> str:
    """A number's name without the settings in brackets: ``esr@1`` of ``esr@1 (judge x)``."""
    return metric.split(" ")[0]


def stem(metric: str) -> str:
    """What a number is of, whatever its settings and its k or threshold: ``esr`` of ``esr@1 (judge x)``."""
    return plain(metric).split("@")[0]


def is_kept(metric: str, by: str) -> bool:
    """Whether a number is of images of what should stay: of the metric called ``by`` in the catalog."""
    name = stem(metric)
    return name in ("psr", "prior_distance") or "_kept" in name or _declared("about").get(by) == "kept"


def meaning(metric: str) -> str:
    """What the number says, in words; empty if its metric does not say."""
    return _by_stem("meanings").get(stem(metric), "")


def glossary(metrics: Iterable[str]) -> dict[str, str]:
    """The meanings of those of ``metrics`` that have one, in the order in which they come."""
    return {name: meaning(name) for name in dict.fromkeys(map(stem, metrics)) if meaning(name)}


def margin(metric: str) -> float | None:
    """Points within which two rows are of equal quality; None where that is not agreed."""
    return RECOVERY_MARGIN if stem(metric) == RECOVERY else _by_stem("margins").get(stem(metric))


def is_quality(metric: str) -> bool:
    """Whether a paired difference says if two rows are of equal quality."""
    return stem(metric) in _by_stem("margins")


def is_share(metric: str) -> bool:
    """Whether the number is a share in percent that may be drawn as a bar from 0 to 100."""
    return any(stem(metric) in names for names in _declared("shares").values())


def is_headline(metric: str, group: Group) -> bool:
    """Whether the number stands in the table: all of the plan's own set, and of other groups the main ones."""
    name = plain(metric)
    if name == DETECTIONS:
        return False
    if group.kind in ("set", "paper") or name == RECOVERY:
        return True
    if group.kind in ("key", "split"):
        return False
    return any(
        fnmatchcase(name, pattern)
        for patterns in _declared("headline").values()
        for kind in ("any", group.kind)
        for pattern in patterns.get(kind, ())
    )


def _by_stem(attribute: str) -> Mapping[str, Any]:
    """What all metrics say under one name of their own numbers, by `stem`."""
    return {name: value for said in _declared(attribute).values() for name, value in said.items()}


@cache
def _declared(attribute: str) -> Mapping[str, Any]:
    """What metrics say under the name of an attribute, by metric."""
    return Catalog("metrics").literals(attribute)
