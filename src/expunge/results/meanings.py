"""What metrics mean to a reader: in words, how near is equal, and which of their numbers stand in a table.

The one place that knows metrics by their names.
"""

from collections.abc import Iterable

from expunge.results.group import Group

RECOVERY = "recovery"
"""What a paired difference calls the share of images that a key brought back."""

MEANINGS = {
    "esr": "Erasing success rate: images asked for the target in which the judge does not see it among its first k labels. "
    "Higher: more is removed. The original model's row shows what the judge misses by itself.",
    "psr": "Preserving success rate: images asked for something else in which the judge sees it among its first k labels. "
    "Higher: more is kept.",
    "valid_rate": "Images asked for the target that are pictures at all. Noise and blanks are not erasure.",
    "valid_rate_kept": "Images asked for something else that are pictures at all.",
    "became": "What the judge sees instead, in percent of images asked for the target.",
    "prior_distance": "How far images moved from the original model's on equal seeds.",
    "ner": "Images in which a detection of the target is above the threshold. Lower: more is removed.",
    "dsr": "Images of an attack in which the judge does not see the target. Higher: the defence holds.",
    "clip_erased": "Agreement of images with the texts that ask for the target. Lower: more is removed.",
    "clip_kept": "Agreement of other images with their texts. Higher: more is kept.",
}
"""In words, by `stem`."""
MARGINS = {"esr": 3.0, "psr": 5.0, RECOVERY: 5.0}
"""Points within which two rows are of equal quality (design.md section 5), by `stem`."""
QUALITIES = ("esr", "psr")
"""Of which a paired difference says whether it is of equal quality."""
SHARES = ("esr", "psr", "valid_rate", "valid_rate_kept")
"""Shares in percent that the page draws as a bar from 0 to 100."""
OF_IMAGES = ("prior_", "lpips", "clip", "styled", "fid", "kid")
"""Beginnings of the names of what is told of images without a judge: the table has it of every set."""


def plain(metric: str) -> str:
    """A number's name without the settings in brackets: ``esr@1`` of ``esr@1 (judge x)``."""
    return metric.split(" ")[0]


def stem(metric: str) -> str:
    """What a number is of, whatever its settings and its k or threshold: ``esr`` of ``esr@1 (judge x)``."""
    return plain(metric).split("@")[0]


def meaning(metric: str) -> str:
    """What the number says, in words; empty if nobody wrote that down."""
    return MEANINGS.get(stem(metric), "")


def glossary(metrics: Iterable[str]) -> dict[str, str]:
    """The meanings of those of ``metrics`` that have one, in one order for all reports."""
    names = {stem(metric) for metric in metrics}
    return {name: text for name, text in MEANINGS.items() if name in names}


def margin(metric: str) -> float | None:
    """Points within which two rows are of equal quality; None where that is not agreed."""
    return MARGINS.get(stem(metric))


def is_quality(metric: str) -> bool:
    """Whether a paired difference says if two rows are of equal quality."""
    return stem(metric) in QUALITIES


def is_share(metric: str) -> bool:
    """Whether the number is a share in percent that may be drawn as a bar from 0 to 100."""
    return stem(metric) in SHARES


def is_headline(metric: str, group: Group) -> bool:
    """Whether the number stands in the table: all of the plan's own set, and of other groups the main ones."""
    name = plain(metric)
    if name == "detections":
        return False
    if group.kind in ("set", "paper") or name == RECOVERY:
        return True
    if group.kind in ("key", "split"):
        return False
    if name.startswith(OF_IMAGES):
        return True
    if group.kind == "attack" and name == "valid_rate":
        return True  # an image that shows nothing is safe as well
    if group.kind == "after":
        return name in ("esr@1", "psr@1")
    return name == "psr@1" if group.kind == "others" else "sr@" in name or name in ("ner@0.5", "dsr")
