"""A contribution held against the store that it was made in: all of it told again, and some of its jobs run again."""

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.errors import ExpungeError
from expunge.executors.gathered import gathered, wanted
from expunge.executors.submission import Contribution
from expunge.jobs import GenerateJob, Workspace, in_order
from expunge.plans.check import checked
from expunge.plans.expand import Measurement
from expunge.results import summary
from expunge.results.files import RECORDS, SUMMARY
from expunge.results.meanings import stem
from expunge.store.atomic import dumped

NUMBERS = ("value", "low", "high", "n")


class Again(NamedTuple):
    """What a job gave when it was run again."""

    what: str
    same: bool
    """Whether each of its records is the same, bit for bit."""
    apart: float
    """By how much a number differs at most."""


def told_from_store(contribution: Contribution, store: Path) -> None:
    """Tell records and summary again from the jobs in ``store``, with the values behind each number.

    Raises:
        ExpungeError: if a job is not in it, or the first line that is not the same, bit for bit.
    """
    wants = wanted(checked(contribution.of.plan))
    finished = gathered(contribution.measurements, Workspace(store=store))
    records = summary.placed(finished)
    told = summary.summarised(wants, finished, records)
    numbers = [row for row in contribution.summary if "claim" not in row and row["group"] != "paper"]
    for name, found, expected in ((RECORDS, contribution.records, records), (SUMMARY, numbers, told)):
        _check_same(contribution.folder / name, found, expected)


def _check_same(file: Path, found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> None:
    if len(found) != len(expected):
        raise ExpungeError(
            f"'{file}' has {len(found):,} lines of numbers: expected {len(expected):,}, as the store gives"
        )
    for number, (one, other) in enumerate(zip(found, expected, strict=True), 1):
        if dumped(file, dict(one)) != dumped(file, dict(other)):
            names = [name for name in other if one.get(name) != other[name]]
            raise ExpungeError(
                f"'{file}' line {number} ({one['metric']}) has another {names[0] if names else 'field'} than its job in the "
                "store: expected the same, bit for bit"
            )


def run_again(contribution: Contribution, store: Path, count: int, device: str = "cpu") -> list[Again]:
    """Make the images of ``count`` measurements again, drawn by chance, and measure them.

    What they stand on (edits, keys, what an attack found) is read from ``store``, which is not written to.

    Raises:
        ExpungeError: if fewer can be run again, or a number lies outside of the interval that was reported.
    """
    at = Workspace(store=store, device=device)
    possible = {m.job.key: (m, m.images) for m in contribution.measurements if m.images and _there(m, at)}
    if count < 1 or len(possible) < count:
        raise ExpungeError(
            f"--rerun {count}: expected 1 to {len(possible)}, the measurements whose edits and images are in '{store}'"
        )
    drawn = random.SystemRandom().sample(list(possible.values()), count)
    return [_again(measurement, images, at) for measurement, images in drawn]


def _there(measurement: Measurement, at: Workspace) -> bool:
    return all(job.result(at) is not None for job in in_order([measurement.job]))


def _again(measurement: Measurement, images: GenerateJob, at: Workspace) -> Again:
    job = measurement.job
    with tempfile.TemporaryDirectory() as place:
        other = Workspace(store=Path(place), device=at.device)
        for up in in_order([job]):
            if up.key not in (job.key, images.key):
                up.folder(other).symlink_to(up.folder(at).resolve(), target_is_directory=True)
        images.finish(other)
        made = job.finish(other)["records"]
    kept = (job.result(at) or {})["records"]
    what = f"{measurement.method}, split {measurement.split}, seed {measurement.seed}, {measurement.group}: {job.describe()}"
    apart = 0.0
    again = {record["metric"]: record for record in made}
    asked = [
        one["metric"] for one in kept if stem(one["metric"]) != "became"
    ]  # which is of the labels that come up most
    lost = [metric for metric in asked if metric not in again]
    if lost:
        raise ExpungeError(f"{what}: run again, there is no {lost[0]}: expected it, as reported")
    both = [(one, again[one["metric"]]) for one in kept if one["metric"] in again]
    for one, new in both:
        if not one["low"] <= new["value"] <= one["high"]:
            raise ExpungeError(
                f"{what}: run again, {new['metric']} is {new['value']:g}: expected it within the reported interval "
                f"{one['low']:g} to {one['high']:g}"
            )
        apart = max(apart, abs(new["value"] - one["value"]))
    same = len(both) == len(kept) == len(made)
    same = same and all([one[name] for name in NUMBERS] == [new[name] for name in NUMBERS] for one, new in both)
    return Again(what, same, apart)
