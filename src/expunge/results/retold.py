"""What records alone tell of their summary: whether its numbers can be theirs.

Records have a value, an interval and n for each job and metric; the values of single images stay in the store. So values, n,
training seeds, splits, costs, what was told and paired differences are told again here; bootstrapped limits only as far as they
must hold the value, and a share's Wilson interval.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from statistics import fmean
from typing import Any, NamedTuple

from expunge.core.cost import Cost
from expunge.core.record import Interval, wilson
from expunge.results.claims import saturation
from expunge.results.counts import became
from expunge.results.differences import verdict
from expunge.results.group import CHANGE, DOUBLED
from expunge.results.knowledge import in_words
from expunge.results.meanings import DETECTIONS, is_kept, is_share
from expunge.results.rows import Row, group_of

NEAR = 2e-3
"""How far a number may be from another way to tell it: records have four decimals, summaries three."""
ROUNDED = 5.1e-4
"""How far rounding moves a limit of a summary."""
SHORTER = 0.11
"""Seconds by which rounding may shorten what was measured."""
CellOf = tuple[str, str, str]


class Retold(NamedTuple):
    """How much of a summary could be told again."""

    values: int
    """Numbers whose value and n are what the records give."""
    differences: int
    """Paired differences, of methods or of an attack's budgets, that are those of their rows and say what their limits do."""
    beyond: int
    """Numbers of which the records alone do not tell the value: images that several splits share in part, parts of analyses."""
    problem: str = ""
    """The first that cannot be told again, in words; empty if all can."""


def retold(records: Sequence[Row], summary: Sequence[Row]) -> Retold:
    """Hold a summary against its records."""
    cells: dict[CellOf, list[Row]] = {}
    for record in records:
        place = record["provenance"]
        cells.setdefault((place["method"], place["group"], record["metric"] + place["variant"]), []).append(record)
    numbers = {
        (row["method"], row["group"], row["metric"]): row for row in summary if "low" in row and "claim" not in row
    }
    values = beyond = differences = 0
    problem = _left(cells, numbers)
    if problem:
        return Retold(values, differences, beyond, problem)
    for cell, row in numbers.items():
        kind = group_of(row).kind
        gained = kind == "key" and " - " not in row["method"]
        if "verdict" in row:
            problem = _between(cell, row, numbers, cells) or _judged(cell, row)
            beyond, differences = beyond + gained, differences + (not gained)
            if problem:
                return Retold(values, differences, beyond, problem)
        elif kind == "split":
            beyond += 1
        else:
            told = _number(row, cells.get(cell, []))
            if told:
                return Retold(values, differences, beyond, f"{' '.join(cell)} {told}")
            values += 1
    problem = _shown(records, summary) or _beside(records, summary)
    return Retold(values, differences, beyond, problem)


def _number(row: Row, records: Sequence[Row]) -> str:
    """What is wrong with a number of one method; empty if it can be its records'."""
    if not records:
        return "has no record behind it"
    once = list({(r["provenance"].get("images", i), str(_of(r))): r for i, r in enumerate(records)}.values())
    counts = {sum(r["n"] for r in some): some for some in (records, once)}
    if row["n"] not in counts:
        shared = len({r["provenance"].get("images", i) for i, r in enumerate(records)}) < len(records)
        if shared and max(r["n"] for r in records) <= row["n"] <= max(counts):
            return ""
        return f"is of n = {row['n']}: expected {max(counts)}, as its records say"
    some = counts[row["n"]]
    means = (sum(r["value"] * r["n"] for r in some) / row["n"], fmean(r["value"] for r in some))
    if min(abs(row["value"] - mean) for mean in means) > NEAR:
        return f"is {row['value']:g}: expected {means[0]:.3f}, as its records give"
    places = [r["provenance"] for r in records]
    for name, field in (("training_seeds", "training_seed"), ("splits", "split")):
        behind = len({place[field] for place in places})
        if row.get(name) != behind:
            return f"has {row.get(name)} {name}: expected {behind}, as its records say"
    return _limits(row)


def _overlap(records: Sequence[Row]) -> bool:
    """Whether splits share images that they count differently: numbers count each image once."""
    counted: dict[Any, list[set[str]]] = {}
    for i, record in enumerate(records):
        labels: set[str] = set(_of(record) or [])
        known = counted.setdefault(record["provenance"].get("images", i), [])
        if labels not in known:
            known.append(labels)
    return any(one & other for known in counted.values() for one, other in combinations(known, 2))


def _of(record: Row) -> Any:
    """Which labels of a folder's images a record is of."""
    said = record["provenance"]
    kept = is_kept(record["metric"], said.get("metric") or "")
    return said.get("retain_measured") if kept else record["concepts"]


def _limits(row: Row) -> str:
    if not row["low"] - NEAR <= row["value"] <= row["high"] + NEAR:
        return f"is {row['value']:g} with the interval {row['low']:g} to {row['high']:g}: expected one that holds it"
    hits = row["value"] * row["n"] / 100
    if is_share(row["metric"]) and abs(hits - round(hits)) <= NEAR * row["n"]:
        least = wilson(round(hits), row["n"])
        if row["low"] > least.low + NEAR or row["high"] < least.high - NEAR:
            return (
                f"has the interval {row['low']:g} to {row['high']:g}: expected Wilson's of {row['n']} images at least, "
                f"{least.low:.3f} to {least.high:.3f}"
            )
    return ""


def _between(cell: CellOf, row: Row, numbers: Mapping[CellOf, Row], cells: Mapping[CellOf, Sequence[Row]]) -> str:
    """What is wrong with the value, n or limits of a difference; empty if it can be that of the two numbers it is between."""
    if not row["low"] - NEAR <= row["value"] <= row["high"] + NEAR:
        return f"{' '.join(cell)} is {row['value']:g}, outside of its interval {row['low']:g} to {row['high']:g}"
    sides = _sides(cell)
    rows = [numbers[side] for side in sides if side in numbers]
    if len(rows) < 2:
        return "" if group_of(row).kind == "key" else f"{' '.join(cell)} has no two rows that it could be between"
    apart = rows[0]["value"] - rows[1]["value"]
    behind = [cells.get(side, []) for side in sides]
    if abs(apart - row["value"]) > NEAR and not any(map(_overlap, behind)):
        return f"{' '.join(cell)} is {row['value']:g}: expected {apart:.3f}, as its two rows are apart"
    seeds = {r["provenance"]["training_seed"] for records in behind for r in records}
    least, most = _paired_images(behind[0], seeds) if behind[0] else (row["n"], row["n"])
    if not least <= row["n"] <= most:
        return f"{' '.join(cell)} has n {row['n']}: expected {most}, as its records say"
    if all(behind) and row["training_seeds"] != len(seeds):
        return f"{' '.join(cell)} has training_seeds {row['training_seeds']}: expected {len(seeds)}, as its records say"
    return ""


def _paired_images(records: Sequence[Row], seeds: set[int]) -> tuple[int, int]:
    """How many images of a row a difference has, at least and at most: those that splits share count once, or once a split.

    A row without training seeds stands for every one.
    """
    by_seed: dict[int, list[Row]] = {}
    for record in records:
        by_seed.setdefault(record["provenance"]["training_seed"], []).append(record)
    least = most = 0
    for seed in seeds:
        own = by_seed.get(seed, by_seed[min(by_seed)])
        once: dict[Any, int] = {}
        for i, record in enumerate(own):
            of = record["provenance"].get("images", i)
            place = of if _overlap(own) else (of, tuple(_of(record) or ()))
            once[place] = max(once.get(place, 0), record["n"])
        least, most = least + sum(once.values()), most + sum(record["n"] for record in own)
    return least, most


def _sides(cell: CellOf) -> list[CellOf]:
    """The two numbers that a difference is between: of two methods, or of an attack with twice its budget and with its own."""
    method, group, metric = cell
    if group.endswith(CHANGE):
        own = group.removesuffix(CHANGE)
        return [(method, own + DOUBLED, metric), (method, own, metric)]
    first, _, second = method.partition(" - ")
    return [(first, group, metric), (second, group, metric)]


def _judged(cell: CellOf, row: Row) -> str:
    """What is wrong with what is said of a difference; empty if its limits, which are rounded, can say so."""
    moves = product((0.0, -ROUNDED, ROUNDED), repeat=2)
    said = [Interval(row["value"], row["low"] + down, row["high"] + up) for down, up in moves]
    if cell[1].endswith(CHANGE):
        can = [{"verdict": saturation(points), "equal_quality": None} for points in said]
    else:
        can = [verdict(points, row["metric"], row["n"], row["training_seeds"]) for points in said]
    for name in ("verdict", "equal_quality"):
        known = [one[name] for one in can]
        if row.get(name) not in known:
            return f"{' '.join(cell)} has {name} {row.get(name)!r}: expected {known[0]!r}, as its interval says"
    return ""


def _left(cells: Mapping[CellOf, Sequence[Row]], numbers: Mapping[CellOf, Row]) -> str:
    """The first number of the records that the summary leaves out."""
    left = [c for c in cells if c not in numbers and not c[2].startswith(("became@", DETECTIONS))]
    return f"{' '.join(left[0])} is in the records, and not in the summary" if left else ""


def _shown(records: Sequence[Row], summary: Sequence[Row]) -> str:
    """What targets became is counted from records alone, so it is the same or wrong."""
    told = [row for row in summary if row["metric"] == "became"]
    same = sorted(told, key=str) == sorted(map(_as_kept, became(records)), key=str)
    return "" if same else "what targets became is not what the records give"


def _as_kept(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a file has it: names in order."""
    return {**{name: row[name] for name in sorted(row)}, "shares": dict(sorted(row["shares"].items()))}


def _beside(records: Sequence[Row], summary: Sequence[Row]) -> str:
    """The first cost, or word on what a method was told, that is not its records'."""
    made: dict[str, dict[tuple[str, ...], Sequence[Row]]] = {}
    told: dict[str, str] = {}
    for record in records:
        place = record["provenance"]
        if place["group"] == "set" and place["edits"]:
            made.setdefault(place["method"], {})[tuple(place["edits"])] = place["made_by"]
            told.setdefault(place["method"], in_words(record["knowledge"]))
    for row in summary:
        if "low" not in row or "verdict" in row or "claim" in row or row["method"] not in made:
            continue
        erasures = made[row["method"]].values()
        costs = [sum(Cost(**step["cost"]).equivalents for step in steps) for steps in erasures]
        # of the quickest: some may have been erased elsewhere, and measured results carried here (benchmarks/carry.py)
        seconds = round(min(sum(step["seconds"] for step in steps) for steps in erasures), 1)
        expected = {"erase_equivalents": round(fmean(costs), 1), "told": told[row["method"]]}
        for name, value in expected.items():
            if name in row and row[name] != value:
                return f"{row['method']} has {name} {row[name]!r}: expected {value!r}, as its records say"
        # jobs take a little longer than what edits say of themselves
        if row.get("erase_seconds", seconds) < seconds - SHORTER:
            return f"{row['method']} has erase_seconds {row['erase_seconds']}: expected {seconds} or more, as its records say"
    return ""
