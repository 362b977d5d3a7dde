"""What attacks brought back, and so what each kind of attacker gets back."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from expunge.core.catalog import Catalog
from expunge.results.group import DOUBLED
from expunge.results.meanings import MISSED, plain
from expunge.results.recoveries import turned
from expunge.results.rows import Row, group_of, numbers

ATTACKERS = {
    "queries": "may only ask",
    "text encoder": "has the text encoder, too",
    "white box": "has the weights",
}
"""Kinds of attackers by what attacks call their access, the least first; who has more may do all that others may."""
SENDS = "sends pictures of it along"
"""Of whoever may start from pictures of the target, whatever else they hold: any model finishes one that is noised little."""


class Share(NamedTuple):
    """Percent of images that show the target, with a 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def written(self) -> str:
        """In words."""
        return f"{self.value:.0f} % [{self.low:.0f}, {self.high:.0f}] of {self.n} images"


class Attacked(NamedTuple):
    """What an attack brought back of a row of the table."""

    method: str
    attack: str
    """Its name, with what tells it from others in the table."""
    access: str
    how: str
    """How it brings the target back, to follow "returns"."""
    shown: Share
    """Images that show the target under the attack."""
    original: Share | None
    """The same of the original model, which calibrates the attack."""
    one_run: bool
    """Whether it is of a single run, so that its interval says nothing of other runs."""
    budget: str
    """Whether it was given its best, where twice its budget was tried: ``saturated``, ``not saturated`` or ``undecided``."""
    with_picture: bool
    """Whether the attacker sends pictures of the target along."""


class Reached(NamedTuple):
    """What a kind of attacker gets back of a row."""

    attacker: str
    """In words."""
    best: Attacked | None
    """The attack that brought most back, of those that this attacker can run; None if none was tried."""
    tried: int


class Standing(NamedTuple):
    """A row of the table before those who want its target back."""

    method: str
    asked: Share | None
    """Images that show the target when it is asked for by name."""
    reached: Sequence[Reached]


def shown_by_name(summary: Sequence[Row], method: str) -> Share | None:
    """Images of a row's own set that show its targets."""
    rows = _counting([row for row in numbers(summary) if group_of(row).kind == "set" and "low" in row])
    return next((_share(row) for row in rows if row["method"] == method), None)


def attacked(summary: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> list[Attacked]:
    """What each attack brought back of each row, the original's as calibration; most first."""
    rows = {(row["method"], row["group"]): row for row in _under_attack(summary)}
    budgets = {(r["method"], r["group"], r["metric"]): str(r["verdict"]) for r in summary if "verdict" in r}
    found: list[Attacked] = []
    for (method, group), row in rows.items():
        own = [r for r in records if _is_of(r, row)]
        about = next((r["provenance"]["attack"] for r in own if r["provenance"].get("attack")), None)
        if about is None or method == "original":
            continue  # the original, which calibrates; or an older record, which does not say what attacked
        calibration = rows.get(("original", group))
        found.append(
            Attacked(
                method=method,
                attack=group_of(row).name,
                access=str(about["access"]),
                how=in_words(about["attack"], about["settings"]),
                shown=_of_run(row, own),
                original=None if calibration is None else _calibrated(calibration, records),
                one_run=len(own) == 1,
                budget=budgets.get((method, str(group_of(row).change), row["metric"]), ""),
                with_picture=_literals("sends_pictures").get(about["attack"], False),
            )
        )
    return sorted(found, key=lambda one: -one.shown.value)


def standings(summary: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> list[Standing]:
    """What each kind of attacker gets back of each row that was attacked; attacks that send pictures stand apart.

    Twice an attack's budget is left out: only some rows were given it.
    """
    found = [one for one in attacked(summary, records) if not one.attack.endswith(DOUBLED)]
    kinds = list(ATTACKERS)
    lines: list[Standing] = []
    for method in dict.fromkeys(row["method"] for row in numbers(summary)):
        mine = [one for one in found if one.method == method]
        able = {
            ATTACKERS[kind]: [one for one in mine if one.access in kinds[: i + 1] and not one.with_picture]
            for i, kind in enumerate(kinds)
        }
        if sent := [one for one in mine if one.with_picture]:
            able[SENDS] = sent
        reached = [Reached(who, next(iter(some), None), len(some)) for who, some in able.items()]
        if mine:
            lines.append(Standing(method, shown_by_name(summary, method), reached))
    return lines


def in_words(attack: str, settings: Mapping[str, Any]) -> str:
    """How an attack with these settings brings a target back; its name where it does not say."""
    try:
        return _literals("returns").get(attack, "").format(**settings) or f"under {attack}"
    except (KeyError, ValueError, TypeError):  # settings of another version
        return f"under {attack}"


@cache
def _literals(name: str) -> Mapping[str, Any]:
    """What attacks write out under a name, none of them imported."""
    return Catalog("attacks").literals(name)


def _under_attack(summary: Sequence[Row]) -> list[Row]:
    """The rows that count images without the target under an attack."""
    return _counting([row for row in numbers(summary) if group_of(row).kind == "attack" and "low" in row])


def _counting(rows: Sequence[Row]) -> list[Row]:
    """Those of the first number there is that counts images without the target, by one judge: the first that was asked."""
    names = [row["metric"] for row in rows]
    first = next((name for metric in MISSED for name in names if plain(name) == metric), None)
    return [row for row in rows if row["metric"] == first]


def _is_of(record: Mapping[str, Any], row: Row) -> bool:
    """Whether a record is one of those behind a row of the summary."""
    at = record["provenance"]
    there = (at["method"], at["group"], record["metric"] + at.get("variant", ""))
    return there == (row["method"], row["group"], row["metric"])


def _calibrated(row: Row, records: Sequence[Mapping[str, Any]]) -> Share:
    return _of_run(row, [r for r in records if _is_of(r, row)])


def _of_run(row: Row, own: Sequence[Mapping[str, Any]]) -> Share:
    """A row's share; of a single run whose images stand or fall together, with the interval over these images alone.

    (The summary's is the whole range there, and says nothing of what that run brought back. Of all other attacks it counts by
    the prompts that were attacked, which a record does not know.)
    """
    group = group_of(row)
    together = group.searched or (group.by_prompt and (row["low"], row["high"]) == (0.0, 100.0))
    return _share(own[0] if together and len(own) == 1 else row)


def _share(row: Row) -> Share:
    there = turned(row)
    return Share(there["value"], there["low"], there["high"], there["n"])
