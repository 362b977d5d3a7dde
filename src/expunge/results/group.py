"""What a number of a table is of: whose images, under which attack, with which key, or of which analysis."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, final

from expunge.core.catalog import Catalog

Kind = Literal["set", "others", "memory", "paper", "further", "key", "attack", "analysis", "after", "split"]

PLAIN = ("set", "others", "memory", "paper")
"""Kinds of which there is one group, called as they are."""
PREFIXED = ("key", "attack", "analysis", "split")
"""Kinds whose groups are written ``KIND: NAME``."""
DOUBLED = ", doubled"
"""How the name of an attack ends that was given twice its budget."""
CHANGE = ", doubled - plain"
"""How the name of a group ends that is what doubling an attack's budget changes."""


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
        """Whether its images are of an attack that finds one thing for all of a run: they stand or fall together.

        What is searched for each prompt alone, or asked out of a file, counts by its prompts, as in a set.
        """
        return self.kind == "attack" and _said("shares").get(self.attack, True)

    @property
    def at_once(self) -> bool:
        """Whether that one thing is the same for all targets, as one change of the weights is."""
        return self.searched and _said("at_once").get(self.attack, False)

    @property
    def by_prompt(self) -> bool:
        """Whether its images are of an attack that finds a text for each prompt: those of one prompt stand or fall together."""
        return self.kind == "attack" and not self.searched and _said("per_prompt").get(self.attack, False)

    @property
    def drawn(self) -> bool:
        """Whether its images are of an attack that draws random numbers, so that it is a training of its own."""
        return self.kind == "attack" and _said("draws").get(self.attack, True)

    @property
    def rewords(self) -> bool:
        """Whether its images are of an attack that changes the prompts it is given, and asks with none of its own."""
        return self.kind == "attack" and not _said("own_prompts").get(self.attack, False)

    @property
    def attack(self) -> str:
        """The attack's name in the catalog."""
        return re.split(r" \(|, ", self.name)[0]

    @property
    def doubled(self) -> "Group":
        """The same attack with its budget doubled."""
        return replace(self, name=self.name + DOUBLED)

    @property
    def change(self) -> "Group":
        """What doubling an attack's budget changes."""
        return replace(self, name=self.name + CHANGE)

    @property
    def recovered(self) -> bool:
        """Whether its images show what a method's own key, or a fresh one, brought back at the end of the erasure."""
        return self.kind == "key" and (self.control == "fresh" or (self.control == "own" and self.step is None))


@cache
def _said(attribute: str) -> Mapping[str, Any]:
    """What attacks write out under a name, none of them imported."""
    return Catalog("attacks").literals(attribute)


SET, OTHERS, MEMORY, PAPER = (Group(kind=kind) for kind in PLAIN)  # pyright: ignore[reportArgumentType]
