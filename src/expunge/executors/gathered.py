"""What a plan's jobs left in the store, gathered as finished measurements; nothing is run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.jobs import GenerateJob, Job, MeasureJob, Workspace, in_order
from expunge.jobs.job import seconds_of
from expunge.plans.expand import Measurement
from expunge.plans.opened import OpenedPlan
from expunge.results.files import FIGURES
from expunge.results.finished import End, Finished, Spent, Value, Wanted
from expunge.results.group import Group
from expunge.store import EDIT


def wanted(read: OpenedPlan) -> Wanted:
    """What a plan wants to be told of its measurements."""
    plan = read.plan
    return Wanted(
        about=plan.about,
        methods=plan.grid.method,
        trained=[name for name in plan.grid.method if read.trained(name)],
        sets=[str(more.group) for more in read.more],
        compare=plan.compare,
        by_split=plan.by_split,
        claims=plan.claims,
        figures=plan.figures,
        histograms=plan.histograms,
        published=read.published,
    )


def gathered(measurements: Sequence[Measurement], at: Workspace) -> list[Finished]:
    """The finished measurements of a plan, with what the jobs that they stand on took.

    Raises:
        ExpungeError: if one of them has no result in the store.
    """
    return [_finished(measurement, at) for measurement in measurements]


def _finished(measurement: Measurement, at: Workspace) -> Finished:
    """One measurement, from its stored result."""
    job = measurement.job
    result = job.result(at)
    if result is None:
        raise ExpungeError(f"'{job.folder(at)}' has no result: expected job {job.key[:8]} to be done first")
    spent = _spent(measurement, at)
    measured = job.images if isinstance(job, MeasureJob) else job.key
    images = measurement.images
    return Finished(
        method=measurement.method,
        split=measurement.split,
        seed=measurement.seed,
        group=measurement.group,
        variant=measurement.variant,
        run=measurement.run,
        images=measured,
        folder=measurement.folder,
        model_sha256="" if images is None else images.model_sha256,
        records=result["records"],
        values=[_values(values, measurement.group, images) for values in result["values"]],
        figures=sorted((job.folder(at) / FIGURES).glob("*.json")),
        peak_bytes=result.get("peak_bytes"),
        erase=[] if None in spent["erase"] else [one for one in spent["erase"] if one is not None],
        pairs=[one for one in spent["pairs"] if one is not None],
        fisher=[one for one in spent["fisher"] if one is not None],
        fresh_keys=[one for one in spent["relearn"] if one is not None],
    )


def _values(values: Sequence[Sequence[Any]], group: Group, images: GenerateJob | None) -> list[Value]:
    """Each image's value; under an attack with the prompt that the attack was to change, since its versions are a cluster.

    (Attacks answer in the order in which they are asked, label by label: a promise of theirs. Of one that answers with more or
    fewer queries nobody knows what was whose: its values have no prompts, and concepts are the clusters.)
    """
    named = [Value(*value) for value in values]
    if not group.rewords or group.searched or images is None:
        return named
    asked: dict[str | None, list[str]] = {}
    for query in images.queries():
        asked.setdefault(query.label, []).append(query.prompt)
    left = {label: iter(prompts) for label, prompts in asked.items()}
    if any(len(asked.get(label, ())) != count for label, count in Counter(v.label for v in named).items()):
        return [v._replace(prompt="") for v in named]
    return [v._replace(prompt=next(left[v.label])) for v in named]


def _spent(measurement: Measurement, at: Workspace) -> dict[str, list[Spent | None]]:
    """What the jobs took that a measurement stands on and costs are told of, by room; None for what the store lacks."""
    group = measurement.group
    fresh = group.kind == "key" and group.control == "fresh"
    counted = ("erase", "pairs", "fisher") if group.kind == "set" else ("relearn",) if fresh else ()
    spent: dict[str, list[Spent | None]] = {"erase": [], "pairs": [], "fisher": [], "relearn": []}
    for job in in_order([measurement.job]) if counted else ():
        if job.room in counted:
            spent[job.room].append(_took(job, at))
    return spent


def _took(job: Job, at: Workspace) -> Spent | None:
    result = job.result(at)
    if result is None:
        return None
    size = (job.folder(at) / EDIT).stat().st_size if job.room == "erase" else 0
    stopped = result.get("stopped")
    end = None if stopped is None else End(stopped["updates"], stopped["reached"])
    return Spent(key=job.key, cost=Cost(**result["cost"]), seconds=seconds_of(result), bytes=size, end=end)
