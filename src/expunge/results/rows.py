"""The rows of a summary: a number for each method, group and metric, over splits and training seeds."""

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import Any

from expunge.core.record import Interval
from expunge.results.cells import CellKey, Cells, Values, cells, flat, interval, points
from expunge.results.finished import Finished
from expunge.results.group import Group
from expunge.store.atomic import FORMAT

Row = Mapping[str, Any]
"""A line of a summary, as its file has it."""


def group_of(row: Row) -> Group:
    """The group that a row names."""
    return _parsed(row["group"])


_parsed = cache(Group.parse)


def numbers(summary: Sequence[Row]) -> list[Row]:
    """The rows of a summary that are a number of one method."""
    return [row for row in summary if "verdict" not in row and "claim" not in row]


def rows(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """A row for each method, group and metric, over splits and training seeds; an image counts once."""
    signed = points(finished)
    per_image = [_number(cell, runs, cell in signed) for cell, runs in cells(finished, once=True).items()]
    return [*per_image, *_of_images_together(finished)]


def rows_by_split(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """The plan's own set's rows once more, one for each split; what exists only for images together is left out."""
    signed = points(finished)
    own: Cells = {cell: runs for cell, runs in cells(finished, once=False).items() if cell.group.kind == "set"}
    lines: list[dict[str, Any]] = []
    for cell, runs in own.items():
        for split in dict.fromkeys(split for by_split in runs.values() for split in by_split):
            alone = {seed: {split: by_split[split]} for seed, by_split in runs.items() if split in by_split}
            there = cell._replace(group=Group(kind="split", name=split))
            lines.append(_number(there, alone, cell in signed))
    return lines


def _number(cell: CellKey, runs: Values, signed: bool) -> dict[str, Any]:
    return row(cell, interval(cell.group, runs, signed=signed), len(flat(runs)), runs)


def _of_images_together(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """A row for each number that exists only for a set of images: the mean over its runs, and the hull of their intervals.

    (A run's record has the interval; nothing is left per image that could be resampled here.)
    """
    by_cell: dict[CellKey, list[tuple[Finished, Row]]] = {}
    for one in finished:
        for record, values in zip(one.records, one.values, strict=True):
            if not values and not record["metric"].startswith("became@"):
                cell = CellKey(one.method, one.group, record["metric"] + one.variant)
                by_cell.setdefault(cell, []).append((one, record))
    lines: list[dict[str, Any]] = []
    for cell, several in by_cell.items():
        records = [record for _, record in several]
        hull = Interval(
            fmean(record["value"] for record in records),
            min(record["low"] for record in records),
            max(record["high"] for record in records),
        )
        seeds = {one.seed for one, _ in several}
        runs: Values = {seed: {one.split: [] for one, _ in several if one.seed == seed} for seed in seeds}
        lines.append(row(cell, hull, sum(record["n"] for record in records), runs))
    return lines


def row(cell: CellKey, number: Interval, n: int, runs: Values) -> dict[str, Any]:
    """A line of a summary: a number and its interval, of ``n`` values from ``runs``."""
    splits = {split for by_split in runs.values() for split in by_split}
    return {
        "format": FORMAT,
        "method": cell.method,
        "group": str(cell.group),
        "metric": cell.metric,
        **{name: round(value, 3) for name, value in number._asdict().items()},
        "n": n,
        "training_seeds": len(runs),
        "splits": len(splits),
    }
