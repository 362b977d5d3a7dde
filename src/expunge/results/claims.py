"""Claims: what a paper says of its methods, against what a plan measured."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from expunge.core.errors import ExpungeError
from expunge.core.record import Interval
from expunge.results.group import CHANGE, DOUBLED, Group
from expunge.results.lookup import Known, check_rows, find_row, known_rows
from expunge.results.meanings import MISSED, margin, plain
from expunge.store.atomic import FORMAT

NOT_MEASURED = "not measured"
UNDECIDED = "undecided"
SATURATED, NOT_SATURATED = "saturated", "not saturated"
"""Whether an attack was given its best: what twice its budget changes is shown to be less than `CHANGED`, or to be more."""
CHANGED = 5.0
"""Points of success."""
SEEDS = 2
"""Training seeds that it takes at least to say that a claim holds or fails: one training may be luck."""


@final
@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper, and the number of a plan that it is about."""

    says: str
    """The claim, in words."""
    source: str = ""
    """Where the paper makes it: a table or figure."""
    rows: tuple[str, ...]
    """One row of the plan, or two whose paired difference is meant, the first less the second."""
    metric: str = "esr@1"
    """As a column of the summary calls it."""
    group: str = "set"
    """Whose images: set, others, a further set's name, `key: own` (two rows' metric there is recovery), an analysis."""
    expected: Literal["higher", "lower", "equal"] = "higher"
    """What the claim says of the first row against the second, or of the one row against ``than``."""
    than: float | None = None
    """A number that a single row is held against."""
    within: float | None = None
    """How near is ``equal``; of ESR 3 points and of PSR 5 if not given."""
    resists: bool = False
    """Whether it says that its first row (of ``equal``: each) resists an attack. It holds only where twice the attack's budget
    is shown to change nothing there: an attacker that was not given its best shows no resistance."""

    def __post_init__(self) -> None:
        if len(self.rows) != (1 if self.than is not None else 2):
            raise ExpungeError(
                f"claim '{self.says}' names {len(self.rows)} rows: expected two, or one and the number that it is held against"
            )

        if self.expected == "equal" and self.within is None and margin(self.metric) is None:
            raise ExpungeError(f"claim '{self.says}' of equal {self.metric}: expected how near that is (within)")

        if self.resists and Group.parse(self.group).kind != "attack":
            raise ExpungeError(f"claim '{self.says}' of '{self.group}' with resists: expected the group of an attack")

        if self.resists and self.group.endswith((DOUBLED, CHANGE)):
            raise ExpungeError(
                f"claim '{self.says}' of '{self.group}' with resists: expected the attack with its own budget, which is held "
                "against twice as much"
            )

        if self.resists and plain(self.metric) not in MISSED:
            raise ExpungeError(
                f"claim '{self.says}' of '{self.metric}' with resists: expected {' or '.join(MISSED)}, which tell saturation"
            )

    @property
    def resisting(self) -> tuple[str, ...]:
        """The rows that it says resist an attack."""
        return () if not self.resists else self.rows if self.expected == "equal" else self.rows[:1]

    def check(self, methods: Iterable[str]) -> None:
        """Refuse a row that the plan does not have.

        Raises:
            ExpungeError: naming it.
        """
        check_rows(f"claim '{self.says}'", self.rows, methods)


def direction(points: Interval) -> str:
    """Which way an interval of a difference points, if it excludes 0."""
    return "higher" if points.low > 0 else "lower" if points.high < 0 else UNDECIDED


def saturation(points: Interval) -> str:
    """What a paired difference of success, with twice the budget and without, says of an attack's budget."""
    if points.low > -CHANGED and points.high < CHANGED:
        return SATURATED
    return NOT_SATURATED if points.low >= CHANGED or points.high <= -CHANGED else UNDECIDED


def verdict(claim: Claim, points: Interval) -> str:
    """Whether a claim ``holds`` or ``fails``, or is ``undecided``; ``points`` are those above what it is held against."""
    most = margin(claim.metric) if claim.within is None else claim.within
    if claim.expected == "equal" and most is not None:
        if -most <= points.low and points.high <= most:
            return "holds"
        return "fails" if points.low > most or points.high < -most else UNDECIDED
    pointed = direction(points)
    return pointed if pointed == UNDECIDED else "holds" if pointed == claim.expected else "fails"


def saturated(claim: Claim, known: Known) -> str | None:
    """What doubling the attack's budget showed of the rows that a claim says resist it; None of other claims.

    The worst of them counts. What was not measured is undecided.
    """
    change = str(Group.parse(claim.group).change)
    rows = [find_row(known, name, change, claim.metric) for name in claim.resisting]
    seen = [UNDECIDED if row is None else row["verdict"] for row in rows]
    return next((verdict for verdict in (NOT_SATURATED, UNDECIDED, SATURATED) if verdict in seen), None)


def seeds(claim: Claim, measured: Mapping[str, Any], trained: Collection[str]) -> int | None:
    """The training seeds behind a claim's number; None where none of its rows depends on one."""
    group = Group.parse(claim.group)
    learned = group.drawn or group.control == "fresh"  # an attack's words and a fresh key are learned, too
    learned = learned or any(name in trained for name in claim.rows)
    return measured["training_seeds"] if learned else None


def judged(
    claims: Sequence[Claim], summary: Sequence[Mapping[str, Any]], trained: Collection[str]
) -> list[dict[str, Any]]:
    """A row of the summary for each claim, from the rows that the summary has.

    What rests on one training seed is undecided, whatever its interval says; and so is that something resists an attack whose
    budget was not shown to be enough. ``trained`` are the methods that depend on one.
    """
    known = known_rows(summary)
    rows: list[dict[str, Any]] = []
    for claim in claims:
        name = " - ".join(claim.rows)
        row: dict[str, Any] = {
            "format": FORMAT,
            "claim": claim.says,
            "source": claim.source,
            "method": name,
            "group": claim.group,
            "metric": claim.metric,
            "expected": claim.expected if claim.than is None else f"{claim.expected} than {claim.than:g}",
        }
        measured = find_row(known, name, claim.group, claim.metric)
        if measured is None:
            rows.append({**row, "claim_verdict": NOT_MEASURED})
            continue
        than = 0.0 if claim.than is None else claim.than
        points = Interval(measured["value"] - than, measured["low"] - than, measured["high"] - than)
        numbers = {name: measured[name] for name in ("value", "low", "high", "n")}
        behind = seeds(claim, measured, trained)
        decided = UNDECIDED if behind is not None and behind < SEEDS else verdict(claim, points)
        best = saturated(claim, known)
        if best is not None:
            row["attack_budget"] = best
            decided = UNDECIDED if decided == "holds" and best != SATURATED else decided
        rows.append({**row, **numbers, "training_seeds": behind, "claim_verdict": decided})
    return rows
