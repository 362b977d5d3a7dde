"""What a plan's jobs left in the store, gathered as finished measurements; nothing is run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.results.files import FIGURES
from expunge.results.finished import Finished, Spent, Wanted
from expunge.results.group import Group
from expunge.stages import jobs
from expunge.stages.planner import Planned, Planner, flattened
from expunge.store import EDIT, read_json


def wanted(planner: Planner) -> Wanted:
    """What a plan wants to be told of its measurements."""
    return Wanted(
        about=planner.plan.about,
        methods=planner.grid.method,
        sets=[further.group for further in planner.further],
        compare=planner.plan.compare,
        by_split=planner.plan.by_split,
        claims=planner.claims,
        figures=planner.figures,
        histograms=planner.histograms,
        published=planner.published,
    )


def gathered(measurements: Sequence[Planned], store: Path) -> list[Finished]:
    """The finished measurements of a plan, with what the jobs that they stand on took.

    Raises:
        ExpungeError: if one of them has no result in the store.
    """
    return [_finished(measurement, store) for measurement in measurements]


def _finished(measurement: Planned, store: Path) -> Finished:
    """One measurement, from its stored result."""
    result = _result(measurement, store)
    if result is None:
        folder = _folder(measurement, store)
        raise ExpungeError(f"'{folder}' has no result: expected job {measurement.key[:8]} to be done first")
    group = Group.parse(measurement.group)
    spent = _spent(measurement, group, store)
    images = measurement.job.get("images", measurement.key)
    made = next((p for p in measurement.upstream if (p.key, p.job["room"]) == (images, "generate")), None)
    return Finished(
        method=measurement.method,
        split=measurement.split,
        seed=measurement.seed,
        group=group,
        variant=measurement.variant,
        run=measurement.run,
        images=images,
        folder="" if made is None else (_folder(made, Path()) / jobs.IMAGES).as_posix(),
        model_sha256="" if made is None else made.job["model_sha256"],
        records=result["records"],
        values=[[(label, value) for label, value in values] for values in result["values"]],
        figures=sorted((_folder(measurement, store) / FIGURES).glob("*.json")),
        peak_bytes=result.get("peak_bytes"),
        erase=[] if None in spent["erase"] else [one for one in spent["erase"] if one is not None],
        pairs=[one for one in spent["pairs"] if one is not None],
        fresh_keys=[one for one in spent["relearn"] if one is not None],
    )


def _spent(measurement: Planned, group: Group, store: Path) -> dict[str, list[Spent | None]]:
    """What the jobs took that a measurement stands on and costs are told of, by room; None for what the store lacks."""
    fresh = group.kind == "key" and group.control == "fresh"
    counted = ("erase", "pairs") if group.kind == "set" else ("relearn",) if fresh else ()
    spent: dict[str, list[Spent | None]] = {"erase": [], "pairs": [], "relearn": []}
    for planned in flattened([measurement]) if counted else ():
        room = planned.job["room"]
        if room in counted:
            spent[room].append(_took(planned, store))
    return spent


def _took(planned: Planned, store: Path) -> Spent | None:
    result = _result(planned, store)
    if result is None:
        return None
    size = (_folder(planned, store) / EDIT).stat().st_size if planned.job["room"] == "erase" else 0
    return Spent(key=planned.key, cost=Cost(**result["cost"]), seconds=result["seconds"], bytes=size)


def _folder(planned: Planned, store: Path) -> Path:
    return jobs.folder(planned.key, planned.job["room"], store)


def _result(planned: Planned, store: Path) -> dict[str, Any] | None:
    """What a job found; None if it is not (or no longer) in the store."""
    file = _folder(planned, store) / jobs.RESULT
    return read_json(file) if file.is_file() else None
