"""What a number of a table is of: whose images, under which attack, with which key, or of which analysis."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, final

from expunge.core.catalog import Catalog

Kind = Literal["set", "others", "memory", "paper", "further", "key", "attack", "analysis", "after", "split"]

PLAIN = ("set", "others", "memory", "paper")
"""Kinds of which there is one group, called as they are."""
PREFIXED = ("key", "attack", "analysis", "split")
"""Kinds whose groups are written ``KIND: NAME``."""


@final
@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of images or numbers. `parse` reads what `str` prints, and files hold it so."""

    kind: Kind
    name: str = ""
    """The further set's name, the attack with what tells it from others, the analysis, or the split."""
    control: str = ""
    """What a recovery injects: ``own``, ``random``, … or the method in whose model the key is used."""
    step: int | None = None
    """After which step of a sequential erasure; or the updates that a ``fresh`` key took."""

    def __str__(self) -> str:
        if self.kind in PLAIN:
            return self.kind
        if self.kind == "further":
            return self.name
        if self.kind == "after":
            return f"after {self.step}"
        if self.kind == "key" and self.step is not None:
            return f"key: fresh {self.step}" if self.control == "fresh" else f"key: {self.control} after {self.step}"
        return f"{self.kind}: {self.control if self.kind == 'key' else self.name}"

    @classmethod
    def parse(cls, text: str) -> "Group":
        """The group that is written ``text``; what is no kind's is the name of a further set."""
        if text in PLAIN:
            return cls(kind=text)  # pyright: ignore[reportArgumentType]
        match: Any = re.fullmatch(r"after (\d+)", text)
        if match:
            return cls(kind="after", step=int(match[1]))
        kind, colon, name = text.partition(": ")
        if not colon or kind not in PREFIXED:
            return cls(kind="further", name=text)
        if kind != "key":
            return cls(kind=kind, name=name)  # pyright: ignore[reportArgumentType]
        match = re.fullmatch(r"fresh (\d+)", name)
        if match:
            return cls(kind="key", control="fresh", step=int(match[1]))
        match = re.fullmatch(r"(.+) after (\d+)", name)
        if match:
            return cls(kind="key", control=match[1], step=int(match[2]))
        return cls(kind="key", control=name)

    @property
    def searched(self) -> bool:
        """Whether each run of an attack searched what its images were asked with: they stand or fall together.

        An attack with prompts of its own, out of a file, searches nothing: its prompts count as those of a set do.
        """
        return self.kind == "attack" and self.name.partition(" (")[0] not in _with_own_prompts()

    @property
    def recovered(self) -> bool:
        """Whether its images show what a method's own key, or a fresh one, brought back at the end of the erasure."""
        return self.kind == "key" and (self.control == "fresh" or (self.control == "own" and self.step is None))


@cache
def _with_own_prompts() -> frozenset[str]:
    """The attacks that ask with prompts of their own."""
    return frozenset(name for name, own in Catalog("attacks").literals("own_prompts").items() if own)


SET, OTHERS, MEMORY, PAPER = (Group(kind=kind) for kind in PLAIN)  # pyright: ignore[reportArgumentType]
