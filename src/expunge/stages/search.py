"""Search: the weakest setting of a method that erases enough and harms little enough, within a budget."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from expunge.core.backbone import Backbone
from expunge.core.concept import Concept
from expunge.core.edit import Edit
from expunge.core.eraser import Eraser, Step, settings_of
from expunge.core.errors import ExpungeError, check_counts
from expunge.core.judge import Judge
from expunge.core.record import Interval
from expunge.stages import check, erase

SEED = 50_000
"""First seed of the images that settings are chosen on: that of the concept sets' dev parts."""
NEAREST = 1.1
"""Strengths nearer to each other than this factor are not told apart."""


@final
@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a search looks for."""

    erased: float
    """ESR-1 of the targets, in percent, that must be reached."""
    lost: float
    """Points of PSR-1 that the neighbours may lose."""
    budget: int = 8
    """Erasures that may be tried."""
    images: int = 12
    """Images a word, for each."""
    judge: str = "testbed"
    """Who tells what they show."""

    def __post_init__(self) -> None:
        check_counts("a search", budget=self.budget, images=self.images)

    @classmethod
    def parsed(cls, goals: Sequence[str], **rest: Any) -> "Goal":
        """From ``esr@1=0.97`` and perhaps ``psr@1=-0.05``: shares, as the command line takes them.

        Raises:
            ExpungeError: if they are of another form.
        """
        found = {"psr@1": -0.05}
        for goal in goals:
            match = re.fullmatch(r"(esr@1|psr@1)=([-+]?\d*\.?\d+)", goal.strip())
            low, high = (0.0, 1.0) if goal.startswith("esr") else (-1.0, 0.0)
            if match is None or not low <= float(match[2]) <= high:
                raise ExpungeError(
                    f"'{goal}' is no goal: expected esr@1=0 to 1, or psr@1=-1 to 0 (points lost, as a share)"
                )
            found[match[1]] = float(match[2])
        if "esr@1" not in found:
            raise ExpungeError(f"'{goals[0]}' alone is no goal: expected how much to erase, such as esr@1=0.97")
        return cls(erased=100 * found["esr@1"], lost=-100 * found["psr@1"], **rest)


class Tried(NamedTuple):
    """One strength, and what it gave on the images that settings are chosen on."""

    times: float
    """Strength, as a multiple of the settings that the search began with."""
    settings: Mapping[str, Any]
    esr: Interval
    psr: Interval
    lost: float
    """Points of PSR-1 that the neighbours lost."""
    equivalents: int
    """Forward-equivalents of the erasure."""

    def misses(self, goal: Goal) -> float:
        """How far it is from the goal, in points; 0 where it is reached."""
        return max(0.0, goal.erased - self.esr.value) + max(0.0, self.lost - goal.lost)


@final
@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search gave."""

    edit: Edit
    best: Tried
    reached: bool
    """Whether the best one reaches the goal."""
    tried: Sequence[Tried]
    """All of them, weakest first: the frontier."""

    def told(self) -> str:
        """The frontier as text."""
        rows = [f"{'strength':>9} {'ESR-1':>18} {'PSR-1':>18} {'lost':>6} {'forwards':>9}"]
        for t in self.tried:
            mark = "*" if t is self.best else " "
            rows.append(
                f"{t.times:>8.3g}{mark} {_cell(t.esr):>18} {_cell(t.psr):>18} {t.lost:>6.1f} {t.equivalents:>9}"
            )
        return "\n".join([*rows, "* chosen" if self.reached else "* nearest: the goal was not reached"])


def _cell(interval: Interval) -> str:
    return f"{interval.value:.0f} [{interval.low:.0f}, {interval.high:.0f}]"


def search(
    backbone: Backbone,
    method: str,
    eraser: Eraser,
    targets: list[Concept],
    retain: list[str],
    goal: Goal,
    *,
    images: Mapping[str, Path] | None = None,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
    on_tried: Callable[[Tried], None] | None = None,
) -> Found:
    """Find the strength that reaches ``goal``, from the settings of ``eraser`` on: doubled or halved, then in between.

    The images that choose are of other seeds and another phrase than those that results are reported on.

    Raises:
        ExpungeError: for a method without a strength, or a judge that does not know the words.
    """
    if eraser.stronger(2.0) is None and eraser.stronger(0.5) is None:
        raise ExpungeError(f"{method} has no strength to search: expected a method that has")
    looked = _Looked(backbone, [t.name for t in targets], retain, goal)
    tried: list[Tried] = []
    best: tuple[float, Edit, Tried] | None = None
    times: float | None = 1.0
    while times is not None and len(tried) < goal.budget:
        setting = eraser.stronger(times) if times != 1.0 else eraser
        if setting is None:
            break
        edit = erase.run(backbone, method, setting, targets, retain, seed, images=images, on_step=on_step)
        row = looked.at(times, settings_of(setting), edit)
        tried.append(row)
        if on_tried is not None:
            on_tried(row)
        if best is None or row.misses(goal) < best[0]:
            best = row.misses(goal), edit, row
        times = None if row.misses(goal) == 0 else following(tried, goal)
    if best is None:
        raise ExpungeError(f"{method} was not tried at all: expected a budget of 1 or more")
    reached = best[0] == 0
    return Found(edit=best[1], best=best[2], reached=reached, tried=sorted(tried, key=lambda t: t.times))


def following(tried: Sequence[Tried], goal: Goal) -> float | None:
    """The next strength: more while too little is erased, less while too much is lost; None where nothing is left between."""
    weak = [t.times for t in tried if t.esr.value < goal.erased]
    harmful = [t.times for t in tried if t.esr.value >= goal.erased]
    if not harmful:
        return 2.0 * max(weak)
    if not weak:
        return min(harmful) / 2
    below, above = max(weak), min(harmful)
    return math.sqrt(below * above) if above / below > NEAREST else None


@final
class _Looked:
    """What the model shows before, and how an edit changes it."""

    def __init__(self, backbone: Backbone, targets: Sequence[str], retain: Sequence[str], goal: Goal) -> None:
        self.backbone, self.targets, self.goal = backbone, list(targets), goal
        self.kept = check.neighbours(targets, retain)
        judge = check.judge_of(goal.judge, [*self.targets, *self.kept])
        if judge is None:
            words = ", ".join([*self.targets, *self.kept])
            raise ExpungeError(f"judge {goal.judge} does not know all of {words}: expected one that does, to search by")
        self.judge: Judge = judge
        self.before = self._rate([], self.kept)

    def _rate(self, edits: Sequence[Edit], words: Sequence[str]) -> Interval:
        seen = check.look(self.backbone, edits, words, self.goal.images, SEED)
        found = check.rate([check.shown(self.judge, word, images) for word, images in seen.items()])
        return Interval(0.0, 0.0, 100.0) if found is None else found

    def at(self, times: float, settings: Mapping[str, Any], edit: Edit) -> Tried:
        shown, kept = (self._rate([edit], words) for words in (self.targets, self.kept))
        erased = Interval(100 - shown.value, 100 - shown.high, 100 - shown.low)
        spent = 0 if edit.provenance is None else edit.provenance.cost.equivalents
        return Tried(times, settings, erased, kept, self.before.value - kept.value, spent)
