"""Stopping: an erasure ends where a judge that does not report sees that enough is erased."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.cost import Cost
from expunge.core.eraser import Step
from expunge.core.errors import ExpungeError, ExpungeWarning, check_counts
from expunge.settings import presets
from expunge.settings.layers import filled
from expunge.stages import check
from expunge.store import Checkpoint

VERSION = 2
"""Part of the key of every job with a stop; goes up when the same stop would end elsewhere."""
SEED = 45_000
"""First seed of the images that are looked at: neither a check's nor that of the dev or test parts of the concept sets."""
LOOKS = "stop/looks"
"""Where a checkpoint has what was seen so far."""
UNTOLD = -1.0
"""In a checkpoint, the share of pictures where the judge could not tell: a checkpoint with NaN is refused."""


@final
@dataclass(frozen=True, kw_only=True)
class Stop:
    """Where an erasure ends before its updates do: at the first look that sees enough erased."""

    erased: float = 97.0
    """ESR-1 of the targets, in percent, that is enough."""
    every: int = 25
    """Updates between two looks."""
    images: int = 12
    """Images a target, at each look; the same seeds every time."""
    judge: str | None = None
    """Who tells what they show; on the testbed its judge B, if nobody is named."""

    def __post_init__(self) -> None:
        check_counts("a stop", every=self.every, images=self.images)
        if not 0 < self.erased <= 100:
            raise ExpungeError(f"a stop's erased is {self.erased:g}: expected a percentage, above 0 and to 100")

    def cost(self, updates: int, words: int, picture: int) -> Cost:
        """What the looks at so many words cost in images of so many evaluations, if none of them is the last."""
        return Cost(forward=picture * words * self.images * math.ceil(updates / self.every))


class Look(NamedTuple):
    """What was seen after so many updates."""

    updates: int
    esr: float
    """Percent of the targets' images that do not show them and, where the judge tells, are pictures at all."""
    valid: float | None = None
    """Percent that are pictures; None from a judge that cannot tell."""


def as_json(stop: Stop, kind: str, words: Sequence[str]) -> dict[str, Any]:
    """A stop as a job has it: what its looks ask for, and its judge by name and by its weights, which must know all ``words``.

    Raises:
        ExpungeError: if there is no judge for this kind of model, or it does not know a word.
    """
    name = check.oracle(stop.judge, kind, f"a model of kind {kind}")
    told_by = check.judge_of(name, words).identity()
    return {**asdict(stop), "judge": name, "told_by": told_by, "looks": presets.looks(kind), "version": VERSION}


def of_json(content: Mapping[str, Any]) -> Stop:
    """The stop that `as_json` wrote."""
    added = ("told_by", "looks", "version")
    return filled(Stop, "stop", {name: value for name, value in content.items() if name not in added})


@final
class Watch:
    """Looks at an erasure on its way, and says when it is enough."""

    def __init__(self, backbone: Backbone, stop: Stop, words: Sequence[str], earlier: Checkpoint | None) -> None:
        """Watch for ``words`` on the images of ``backbone``, from where an ``earlier`` run was."""
        self._backbone, self._stop, self._words = backbone, stop, list(words)
        self.name = check.oracle(stop.judge, backbone.kind, backbone.name)
        self._judge = check.judge_of(self.name, self._words)
        seen = None if earlier is None else earlier.state.get(LOOKS)
        self.looks = [] if seen is None else [_look(*row) for row in seen.tolist()]

    def enough(self, step: Step) -> bool:
        """Whether ``step`` is a last one; looks if it is time to."""
        return (step.index + 1) % self._stop.every == 0 and self._look(step)

    def end(self, last: Step) -> None:
        """Look once more, unless the last look was at ``last``; say so if it was not enough."""
        if not self.looks or self.looks[-1].updates != last.index + 1:
            self._look(last)
        if not self.reached:
            warnings.warn(
                f"the erasure ended after {last.index + 1} updates with ESR-1 {self.looks[-1].esr:.0f} by {self.name}: "
                f"expected {self._stop.erased:g} (more updates, or a larger rate)",
                ExpungeWarning,
                stacklevel=4,
            )

    @property
    def reached(self) -> bool:
        """Whether the last look saw enough."""
        return bool(self.looks) and self.looks[-1].esr >= self._stop.erased

    def state(self) -> dict[str, Tensor]:
        """What going on after an update needs."""
        rows = [(n, esr, UNTOLD if valid is None else valid) for n, esr, valid in self.looks]
        return {LOOKS: torch.tensor(rows, dtype=torch.float64)} if rows else {}

    def record(self) -> dict[str, Any]:
        """What an edit says of it: the judge, and each look."""
        looks = [look._asdict() for look in self.looks]
        ended = {"updates": self.looks[-1].updates, "reached": self.reached}
        return {"stop": asdict(self._stop), "judge": self.name, "first_seed": SEED, "looks": looks, **ended}

    def _look(self, step: Step) -> bool:
        seen = check.look(self._backbone, [step.edit()], self._words, self._stop.images, SEED)
        absent = [not shown for word, images in seen.items() for shown in check.shown(self._judge, word, images) or ()]
        told = [self._judge.valid(images) for images in seen.values()]
        pictures = [ok for valid in told if valid is not None for ok in valid.tolist()]
        erased = [gone and ok for gone, ok in zip(absent, pictures, strict=True)] if pictures else absent
        valid = 100 * sum(pictures) / len(pictures) if pictures else None
        self.looks.append(Look(step.index + 1, 100 * sum(erased) / len(erased), valid))
        return self.reached


def _look(updates: float, esr: float, valid: float) -> Look:
    """A look as a checkpoint has it."""
    return Look(int(updates), esr, None if valid == UNTOLD else valid)
