"""Search: a strength of a method that erases enough and harms little enough, within a budget."""

import math
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, final

from expunge.core.backbone import Backbone
from expunge.core.concept import Concept
from expunge.core.edit import Edit
from expunge.core.eraser import Eraser, Step, settings_of
from expunge.core.errors import ExpungeError, ExpungeWarning, check_counts
from expunge.core.judge import Judge
from expunge.core.record import Interval
from expunge.stages import check, erase
from expunge.stages.verdict import DRAWN, mean
from expunge.store import with_provenance

SEED = 50_000
"""First seed of the images that settings are chosen on: that of the concept sets' dev parts."""
NEAREST = 1.1
"""Strengths nearer to each other than this factor are not told apart."""
MOST = 16.0
"""The strongest that is tried, as a multiple of the settings that a search begins with."""


@final
@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a search looks for."""

    erased: float
    """ESR-1 of the targets, in percent, that must be reached."""
    lost: float = 5.0
    """Points of PSR-1 that the neighbours may lose."""
    budget: int = 8
    """Erasures that may be tried."""
    images: int = 12
    """Images a word, for each."""
    judge: str | None = None
    """Who tells what they show; on the testbed its judge B, if nobody is named."""

    def __post_init__(self) -> None:
        check_counts("a search", budget=self.budget, images=self.images)


def goal_of(words: Sequence[str], budget: int = 8, judge: str | None = None) -> Goal:
    """A goal from ``esr@1=0.97`` and perhaps ``psr@1=-0.05``: shares, as the command line takes them.

    Raises:
        ExpungeError: if they are of another form.
    """
    shares: dict[str, float] = {}
    for word in words:
        match = re.fullmatch(r"\s*(esr@1|psr@1)=([-+]?\d*\.?\d+)\s*", word)
        low, high = (-1.0, 0.0) if match is not None and match[1] == "psr@1" else (0.0, 1.0)
        if match is None or not low <= float(match[2]) <= high:
            raise ExpungeError(
                f"'{word}' is no goal: expected esr@1=0 to 1, or psr@1=-1 to 0 (points lost, as a share)"
            )
        shares[match[1]] = float(match[2])
    if "esr@1" not in shares:
        raise ExpungeError(f"'{words[0]}' alone is no goal: expected how much to erase, such as esr@1=0.97")
    return Goal(erased=100 * shares["esr@1"], lost=-100 * shares.get("psr@1", -0.05), budget=budget, judge=judge)


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
class SearchResult:
    """What a search gave."""

    edit: Edit
    best: Tried
    reached: bool
    """Whether the best one reaches the goal."""
    tried: Sequence[Tried]
    """All of them, weakest first: the frontier."""

    def table(self) -> str:
        """The frontier as text."""
        rows = [f"{'strength':>9} {'ESR-1':>18} {'PSR-1':>18} {'lost':>6} {'forward-equivalents':>20}"]
        for t in self.tried:
            mark = "*" if t is self.best else " "
            rows.append(
                f"{t.times:>8.3g}{mark} {_cell(t.esr):>18} {_cell(t.psr):>18} {t.lost:>6.1f} {t.equivalents:>20,}"
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
) -> SearchResult:
    """Look for a strength that reaches ``goal``, from the settings of ``eraser`` on: doubled or halved, then in between.

    The first that reaches it is taken, else the nearest. The images that choose have other seeds and another phrase than those
    that results are reported on, and another judge tells what they show. The edit's provenance says what was tried, and its
    cost is that of all tries and their images.

    Raises:
        ExpungeError: for a method without a strength, or a judge that does not know the words.
    """
    if eraser.stronger(2.0) is None and eraser.stronger(0.5) is None:
        raise ExpungeError(f"{method} has no strength to search: expected a method that has")
    eraser.check_targets(targets)
    begun, start = backbone.cost, time.perf_counter()
    looked = _Looked(backbone, [t.name for t in targets], retain, goal)
    tried: list[Tried] = []
    best: tuple[Edit, Tried] | None = None
    times: float | None = 1.0
    while times is not None and len(tried) < goal.budget:
        setting = _at(eraser, times, tried)
        if setting is None:
            break
        edit = erase.run(backbone, method, setting, targets, retain, seed, images=images, on_step=on_step)
        row = looked.at(times, settings_of(setting), edit)
        tried.append(row)
        if on_tried is not None:
            on_tried(row)
        if best is None or row.misses(goal) < best[1].misses(goal):
            best = edit, row
        times = None if row.misses(goal) == 0 else following(tried, goal)
    if best is None:
        raise ExpungeError(f"{method} was not tried at all: expected a budget of 1 or more")
    edit, chosen = best
    reached = chosen.misses(goal) == 0
    if not reached:
        warnings.warn(
            f"the goal was not reached in {len(tried)} tries: ESR-1 {chosen.esr.value:.0f} (expected {goal.erased:.0f}), "
            f"PSR-1 lost {chosen.lost:.1f} points (expected at most {goal.lost:.0f})",
            ExpungeWarning,
            stacklevel=2,
        )
    if edit.provenance is not None:
        record = {"goal": asdict(goal), "judge": looked.name, "neighbours": looked.kept, "first_seed": SEED}
        record["shown_before"] = looked.drawn
        record["tried"] = [t._asdict() for t in tried]
        spent, seconds = backbone.cost - begun, round(time.perf_counter() - start, 3)
        with_provenance(edit, replace(edit.provenance, search=record, cost=spent, seconds=seconds))
    return SearchResult(edit=edit, best=chosen, reached=reached, tried=sorted(tried, key=lambda t: t.times))


def _at(eraser: Eraser, times: float, tried: Sequence[Tried]) -> Eraser | None:
    """The method at a strength; None where there is none, or it is one that was tried."""
    try:
        setting = eraser.stronger(times) if times != 1.0 else eraser
    except ExpungeError as error:  # settings that do not go together at this strength
        warnings.warn(f"strength {times:.3g} is left out: {error}", ExpungeWarning, stacklevel=3)
        return None
    known = [dict(t.settings) for t in tried]
    return None if setting is None or settings_of(setting) in known else setting


def following(tried: Sequence[Tried], goal: Goal) -> float | None:
    """The next strength: more while too little is erased, less once enough is; None where none can do better.

    (Where too little is erased and too much lost already, more would lose more.)
    """
    short = [t for t in tried if t.esr.value < goal.erased]
    enough = [t.times for t in tried if t.esr.value >= goal.erased]
    if not enough:
        strongest = max(short, key=lambda t: t.times)
        return None if strongest.lost > goal.lost or strongest.times >= MOST else 2.0 * strongest.times
    if not short:
        return min(enough) / 2
    below, above = max(t.times for t in short), min(enough)
    return math.sqrt(below * above) if above / below > NEAREST else None


@final
class _Looked:
    """What the model shows before, and how an edit changes it."""

    def __init__(self, backbone: Backbone, targets: Sequence[str], retain: Sequence[str], goal: Goal) -> None:
        self.backbone, self.targets, self.goal = backbone, list(targets), goal
        self.name = check.oracle(goal.judge, backbone.kind, backbone.name)
        self.kept = check.neighbours(targets, retain, backbone.kind)
        if not self.kept:
            raise ExpungeError("no neighbour is left to look at: expected words to keep (--retain)")
        self.judge: Judge = check.judge_of(self.name, [*self.targets, *self.kept])
        seen = check.look(backbone, [], [*self.targets, *self.kept], goal.images, SEED)
        self.drawn = {word: self._shown({word: images}).value for word, images in seen.items()}
        poor = [f"{word} is drawn in {value:.0f} %" for word, value in self.drawn.items() if value < DRAWN]
        if poor:
            warnings.warn(
                f"{', '.join(poor)} of the model's own images: no measure (expected {DRAWN:.0f} % or more)",
                ExpungeWarning,
                stacklevel=3,
            )
        self.before = mean([self.drawn[word] for word in self.kept])

    def _shown(self, seen: Mapping[str, check.Images]) -> Interval:
        """Percent of all these images that show their word."""
        rate = check.rate([check.shown(self.judge, word, images) for word, images in seen.items()])
        return Interval(0.0, 0.0, 100.0) if rate is None else rate

    def at(self, times: float, settings: Mapping[str, Any], edit: Edit) -> Tried:
        """What ``edit`` gives."""
        looks = (check.look(self.backbone, [edit], w, self.goal.images, SEED) for w in (self.targets, self.kept))
        shown, kept = map(self._shown, looks)
        erased = Interval(100 - shown.value, 100 - shown.high, 100 - shown.low)
        spent = 0 if edit.provenance is None else edit.provenance.cost.equivalents
        return Tried(times, settings, erased, kept, self.before - kept.value, spent)
