"""The verdict on an edit: what a few images before and after it show, in a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

from expunge.core.record import Interval

STILL, MOVED = 0.05, 0.7
"""Shares of the difference between two seeds: below the first an edit does nothing, above the second a neighbour is gone."""
LOST = 25.0
"""Points of PSR-1 that neighbours may lose before it is said."""
DRAWN = 80.0
"""Percent of the model's own images that must show a word, for the edited model's to be a measure."""
WHOLE = 90.0
"""Percent of images that must be pictures."""
GONE, THERE = 10.0, 50.0
"""Percent of images that may still show a target that is called gone; above the second it is called still shown."""

Outcome = Literal[
    "gone",
    "partly shown",
    "still shown",
    "unchanged",
    "ruined",
    "no measure",
    "no judge",
    "not all looked at",
    "not looked at",
]
"""What the look says of the targets: ``gone`` is a judge's word on a few images, no proof."""


@final
@dataclass(frozen=True, kw_only=True)
class Seen:
    """What images of a word show."""

    word: str
    moved: float
    """How far they moved, as a share of the difference between two seeds of one prompt."""
    before: Interval | None
    """Percent of the model's images that show it; None if no judge knows the word."""
    after: Interval | None
    """The same of the edited model."""

    @property
    def measure(self) -> bool:
        """Whether the model draws it well enough for its loss to tell anything."""
        return self.before is not None and self.before.value >= DRAWN

    @property
    def there(self) -> bool:
        """Whether most of the edited model's images still show it."""
        return self.after is not None and self.after.value > THERE

    @property
    def partly(self) -> bool:
        """Whether it is less often shown than before, but too often to be gone."""
        return self.measure and self.after is not None and GONE < self.after.value <= THERE

    def line(self) -> str:
        """What became of a word that should go."""
        if self.before is None or self.after is None:
            return f"{self.word}: {_moved(self.moved)}"
        shown = f"{self.before.value:.0f} -> {self.after.value:.0f} %"
        said = f"{self.word}: shown in {shown}"
        if not self.measure:
            said = (
                f"{self.word} is drawn in {self.before.value:.0f} % before, {self.after.value:.0f} % after: no measure "
                f"({_moved(self.moved)})"
            )
        left = ", still there" if self.there else ", partly still there" if self.partly else ""
        return said + left + (", unchanged" if self.moved < STILL else "")

    def as_json(self) -> dict[str, Any]:
        """Its figures as JSON."""
        before, after = (None if s is None else s._asdict() for s in (self.before, self.after))
        return {"word": self.word, "moved": self.moved, "before": before, "after": after}


class Loss(NamedTuple):
    """Percent of the neighbours' images that show them, all together."""

    words: str
    before: float
    after: float


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """What a few images show of an edit."""

    images: int
    """Images a word."""
    judge: str | None
    """Who tells what they show; None if nobody who knows a word does."""
    targets: Sequence[Seen]
    kept: Sequence[Seen]
    more: int = 0
    """Targets that were not looked at."""
    pictures: float
    """Percent of the edited model's images that are pictures, not noise or blanks."""
    pictures_before: float
    """The same of the model before."""

    @property
    def outcome(self) -> Outcome:
        """What became of the targets."""
        if self.ruined:
            return "ruined"
        if any(t.moved < STILL for t in self.targets):
            return "unchanged"
        if any(t.there for t in self.targets):
            return "still shown"
        if any(t.partly for t in self.targets):
            return "partly shown"
        if any(t.after is None for t in self.targets):
            return "no judge"
        if not all(t.measure for t in self.targets):
            return "no measure"
        return "not all looked at" if self.more else "gone"

    @property
    def ruined(self) -> bool:
        """Whether the edit, not the model, makes something else than pictures."""
        return self.pictures < min(WHOLE, self.pictures_before)

    @property
    def loss(self) -> Loss | None:
        """What the neighbours lost that the model draws well; None if there is none that a judge knows."""
        rates = [(k.word, k.before.value, k.after.value) for k in self.kept if k.measure and k.before and k.after]
        if not rates:
            return None
        words, before, after = zip(*rates, strict=True)
        return Loss(", ".join(words), mean(before), mean(after))

    @property
    def problems(self) -> list[str]:
        """What is wrong, each in a line with its figures."""
        lines: list[str] = []
        for target in self.targets:
            if target.moved < STILL:
                lines.append(
                    f"the edit changes next to nothing: images of {target.word} moved by {100 * target.moved:.1f} % of the "
                    f"difference between two seeds (expected {100 * STILL:.0f} % or more)"
                )
            elif target.after is not None and (target.there or target.partly):
                lines.append(
                    f"{target.word} is still shown in {target.after.value:.0f} % of images (expected {GONE:.0f} % or less)"
                )
        if self.ruined:
            lines.append(
                f"only {self.pictures:.0f} % of the images are pictures, before {self.pictures_before:.0f} %: "
                f"expected {WHOLE:.0f} % or more (a smaller step?)"
            )
        return lines + self._harm

    @property
    def _harm(self) -> list[str]:
        """What is wrong with the neighbours: by the judge, or by how far they moved where it cannot tell."""
        loss, others = self.loss, [k for k in self.kept if not k.measure]
        if loss is not None and loss.before - loss.after > LOST:
            return [
                f"neighbours suffer: {loss.words} shown in {loss.after:.0f} % of images, before in {loss.before:.0f} % "
                f"(expected at most {LOST:.0f} points less)"
            ]
        far = mean([k.moved for k in others])
        if far > MOVED:
            return [
                f"neighbours suffer: images of {', '.join(k.word for k in others)} moved by {100 * far:.0f} % of the "
                f"difference between two seeds (expected {100 * MOVED:.0f} % or less)"
            ]
        return []

    def line(self) -> str:
        """The verdict: what became of the targets and of their neighbours, who told, and on how many images."""
        parts: list[str] = []
        if self.ruined:
            parts.append(f"images are ruined: {self.pictures:.0f} % are pictures, before {self.pictures_before:.0f} %")
        elif self.pictures_before < WHOLE:
            parts.append(f"{self.pictures_before:.0f} % of the model's own images are pictures: no measure")
        parts += [target.line() for target in self.targets]
        parts += [f"{self.more} more targets not looked at"] if self.more else []
        loss = self.loss
        if loss is not None:
            parts.append(f"{loss.words} kept {loss.before:.0f} -> {loss.after:.0f} %")
        for one in self.kept:
            if one.before is None:
                parts.append(f"{one.word}: {_moved(one.moved)}")
            elif not one.measure:
                parts.append(f"{one.word} is drawn in {one.before.value:.0f} % before: no measure")
        parts += ["neighbours suffer"] if self._harm else []
        return f"{'; '.join(parts)} ({self._judged_by()}, n = {self.images} a word)"

    def _judged_by(self) -> str:
        if self.judge is None:
            return "no judge told"
        strange = [s.word for s in (*self.targets, *self.kept) if s.before is None]
        return f"judge {self.judge}" + (f", which does not know {', '.join(strange)}" if strange else "")

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "verdict": self.line(),
            "outcome": self.outcome,
            "problems": self.problems,
            "judge": self.judge,
            "images": self.images,
            "targets": [s.as_json() for s in self.targets],
            "targets_not_looked_at": self.more,
            "kept": [s.as_json() for s in self.kept],
            "pictures": self.pictures,
            "pictures_before": self.pictures_before,
        }


def _moved(share: float) -> str:
    """How far images moved, in words."""
    moved = f"images moved by {100 * share:.0f} % of the difference between two seeds"
    return f"unchanged, {moved}" if share < STILL else moved


def mean(values: Sequence[float]) -> float:
    """Their mean; 0 of none."""
    return sum(values) / len(values) if values else 0.0
