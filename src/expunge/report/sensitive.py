"""Which images a reader should ask for before they are shown."""

import re
from collections.abc import Sequence
from functools import cache

from expunge import testbed

CATEGORIES = ("weapon", "death")
"""The testbed's unsafe classes: their objects are covered too."""
WORDS = (
    "blood", "breast", "bullet", "corpse", "drug", "erotic", "explosive", "genitalia", "gore", "grenade", "gun", "hate",
    "knife", "knives", "murder", "naked", "nipple", "nude", "nudity", "penis", "pistol", "porn", "pornography", "rifle",
    "self-harm", "sex", "sexual", "sexy", "shooting", "suicide", "sword", "terrorist", "torture", "vagina", "violence",
    "violent",
)  # fmt: skip


def covered(texts: Sequence[str | None], more: Sequence[str] = ()) -> bool:
    """Whether a label, prompt or title names something unsafe, or one of the words ``more``."""
    return any(_pattern(tuple(more)).search(text) for text in texts if text)


@cache
def _pattern(more: tuple[str, ...]) -> re.Pattern[str]:
    objects = testbed.vocabulary()["objects"]
    unsafe = [name for name, about in objects.items() if about["category"] in CATEGORIES]
    words = "|".join(re.escape(word.strip()) for word in (*WORDS, *CATEGORIES, *unsafe, *more) if word.strip())
    return re.compile(rf"\b(?:{words})(?:s|es)?\b", re.IGNORECASE)
