"""Paired differences of two rows of a table, on equal seeds and prompts, and what they show."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from expunge.core.errors import ExpungeError
from expunge.core.record import Interval, hull, paired_proportions
from expunge.results.cells import CellKey, Cells, Values, cells, mean, share
from expunge.results.claims import direction, saturation
from expunge.results.finished import Finished, Value
from expunge.results.group import Group
from expunge.results.meanings import MISSED, RECOVERY, is_quality, margin, plain
from expunge.results.rows import row

OWN, RANDOM, GAIN = (Group(kind="key", control=control) for control in ("own", "random", "own - random"))
"""What a method's own key brought back, what a random one did, and the one less the other."""
IMAGES, SEEDS = 1000, 2
"""Images and training seeds that it takes at least to call two rows of equal quality (design.md section 5)."""


class Paired(NamedTuple):
    """Values of two rows on equal seeds and prompts."""

    differences: dict[int, dict[str, list[Value]]]
    """By training seed and split."""
    ones: list[float]
    others: list[float]


def differences(pairs: Sequence[Sequence[str]], finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """A row for each pair of methods, group and metric that both have: the first less the second, in points.

    Raises:
        ExpungeError: if the two were not measured on the same images of a split.
    """
    values = cells(finished, once=False)
    keyed = recovered(values) | gained(values)
    values = {cell: runs for cell, runs in values.items() if cell.group.kind != "key"} | keyed
    rows: list[dict[str, Any]] = []
    for one, other in pairs:
        for cell in [cell for cell in values if cell.method == one]:
            against = values.get(cell._replace(method=other), {})
            if not against:
                continue
            both = _paired(values[cell], against, (one, other))
            rows.append(_row(cell._replace(method=f"{one} - {other}"), both))
    return rows


def _row(cell: CellKey, both: Paired) -> dict[str, Any]:
    """A line of a summary: a difference in points, and what it shows."""
    interval, n = _points(both, cell.group), len(both.ones)
    shown = verdict(interval, cell.metric, n, len(both.differences))
    return {**row(cell, interval, n, both.differences), "unit": "points", **shown}


def _paired(mine: Values, theirs: Values, names: tuple[str, str]) -> Paired:
    """Values of two rows beside each other, each pair of images once, whatever splits it serves.

    A row without training seeds stands for every one.
    """
    both = Paired({}, [], [])
    for seed in sorted({*mine, *theirs}):
        first, second = (runs.get(seed, runs[min(runs)]) for runs in (mine, theirs))
        counted: set[tuple[str, str, str]] = set()
        for split, values in first.items():
            against = second.get(split, [])
            if [v.label for v in against] != [v.label for v in values]:
                raise ExpungeError(
                    f"'{names[0]}' and '{names[1]}' have other images on split {split}: expected the same"
                )
            pairs = list(zip(values, against, strict=True))
            new = [(a, b) for a, b in pairs if (a.images, b.images, a.label) not in counted]
            counted.update((a.images, b.images, a.label) for a, b in pairs)
            both.differences.setdefault(seed, {})[split] = [a._replace(value=a.value - b.value) for a, b in new]
            both.ones.extend(a.value for a, _ in new)
            both.others.extend(b.value for _, b in new)
    return both


def _points(both: Paired, group: Group) -> Interval:
    """The interval of a difference: of shares, or else of means, of which Newcombe says nothing."""
    if not set(both.ones) | set(both.others) <= {0.0, 1.0}:
        return mean(group, both.differences)
    return hull(paired_proportions(both.ones, both.others), share(group, both.differences, -1.0))


def recovered(values: Cells) -> Cells:
    """Whether each target came back with its own key, or with a fresh one: what ESR-1 counts, turned round."""
    return {
        CellKey(cell.method, cell.group, RECOVERY + cell.metric.removeprefix("esr@1")): _came_back(runs)
        for cell, runs in values.items()
        if cell.group.recovered and plain(cell.metric) == "esr@1"
    }


def _came_back(runs: Values) -> dict[int, dict[str, list[Value]]]:
    """Whether each target came back: what ESR-1 counts, turned round."""
    return {
        seed: {split: [v._replace(value=1 - v.value) for v in erased] for split, erased in by_split.items()}
        for seed, by_split in runs.items()
    }


def _with_own_and_random(values: Cells) -> Iterator[tuple[CellKey, Paired]]:
    """What came back with a method's own key beside what did with a random one, image by image."""
    for cell, runs in values.items():
        random = values.get(cell._replace(group=RANDOM))
        if cell.group == OWN and plain(cell.metric) == "esr@1" and random:
            gain = CellKey(cell.method, GAIN, RECOVERY + cell.metric.removeprefix("esr@1"))
            names = (f"{cell.method}, {OWN}", f"{cell.method}, {RANDOM}")
            yield gain, _paired(_came_back(runs), _came_back(random), names)


def gained(values: Cells) -> Cells:
    """How much more each image shows its target with its own key than with a random one: 1, 0 or -1."""
    return {cell: both.differences for cell, both in _with_own_and_random(values)}


def gains(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """A row for each method with a key: what it brings back less what a random one does, paired, in points."""
    return [_row(cell, both) for cell, both in _with_own_and_random(cells(finished, once=False))]


def saturations(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """A row for each attack whose budget was doubled, method and number that counts images without the target.

    With twice the budget less with its own, paired, in points: below 0 where more comes back. The row's ``verdict`` says
    whether the attack is ``saturated``.
    """
    values = cells(finished, once=False)
    lines: list[dict[str, Any]] = []
    for cell, runs in values.items():
        if cell.group.kind != "attack" or plain(cell.metric) not in MISSED:
            continue
        stronger = values.get(cell._replace(group=cell.group.doubled))
        if stronger:
            both = _paired(stronger, runs, (f"{cell.method}, {cell.group.doubled}", f"{cell.method}, {cell.group}"))
            line = _row(cell._replace(group=cell.group.change), both)
            lines.append({**line, "verdict": saturation(_points(both, cell.group)), "equal_quality": None})
    return lines


def verdict(points: Interval, metric: str, n: int, seeds: int) -> Mapping[str, Any]:
    """What a paired difference shows (design.md section 5): its direction, and whether the two are of equal quality.

    ``equal_quality`` is None where ``n`` images and ``seeds`` training seeds are too few, or the metric is not one of quality.
    """
    most = margin(metric)
    equal: bool | None = None
    if most is not None and is_quality(metric) and n >= IMAGES and seeds >= SEEDS:
        equal = -most <= points.low and points.high <= most
    return {"verdict": direction(points), "equal_quality": equal}
