"""Which of the results that were kept are what a plan asks for today; nothing is run, and no file of the store is read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.backbones.hub import is_hub_id
from expunge.jobs import MeasureJob
from expunge.jobs.workspace import model
from expunge.plans.check import checked
from expunge.plans.expand import Measurement, expanded
from expunge.plans.read import read_plan
from expunge.plans.schema import FAST, Plan, precision_of
from expunge.results.group import SET
from expunge.store import read_lines

Records = Sequence[Mapping[str, Any]]
TESTBED = "testbed"
Measured = tuple[str, str, str]
"""A folder of images, a metric, and its settings as JSON."""


def measurements_of(plan: Plan, records: Records) -> list[Measurement]:
    """What ``plan`` measures; where it leaves the precision of images to the machine, in that of ``records``.

    Raises:
        ExpungeError: as `checked` and `expanded`.
    """
    imaged = [r["provenance"] for r in records if "/" in r["provenance"].get("images", "")]
    own = [p["dtype"] for p in imaged if p.get("dtype") and precision_of(p["method"]) is None]
    made_in = plan.image_dtype if plan.image_dtype != FAST or not own else max(set(own), key=own.count)
    return expanded(checked(replace(plan, image_dtype=made_in)))


def answered(plan: Plan, records: Records) -> frozenset[str]:
    """The methods of ``plan`` whose records are of the very images and metrics that it asks for today, none of its set lacking.

    The key of images covers the model's files and every setting, so what was made on another testbed, or with an earlier text
    of the plan, does not count; nor what a metric with other settings measured, or, as far as records say, another version of
    it or other weights. An analysis keeps no images, and committed files keep no records of keys, nor of attacks all: these
    numbers count with those of their method.

    Raises:
        ExpungeError: as `checked` and `expanded`.
    """
    imaged = [r["provenance"] for r in records if "/" in r["provenance"].get("images", "")]
    here = model(plan.model, plan.dtype).identity() if imaged else ""
    if here not in {p.get("model_sha256") for p in imaged}:
        return frozenset()
    measurements = measurements_of(plan, records)
    asked = _by_method((m.method, _measured(m)) for m in measurements)
    needed = _by_method((m.method, _measured(m)) for m in measurements if m.group == SET and m.folder)
    jobs = {_measured(m): m.job for m in measurements}
    found: dict[str, set[Measured]] = {}
    otherwise: set[str] = set()
    for p in imaged:
        of = p["images"], p["metric"], _written(p["settings"])
        found.setdefault(p["method"], set()).add(of)
        job = jobs.get(of)
        if isinstance(job, MeasureJob) and measured_otherwise(p, job):
            otherwise.add(p["method"])
    whole = (name for name, made in found.items() if needed.get(name, set()) <= made <= asked.get(name, set()))
    return frozenset(whole) - otherwise


def measured_otherwise(provenance: Mapping[str, Any], job: MeasureJob) -> str:
    """How the metric that measured a record differs from that of ``job``, in words; empty if not, or if nothing is said.

    Records of an earlier expunge say neither a version of their metric, nor what its judge or weights are told by.
    """
    version, told_by = provenance.get("version", job.version), provenance.get("measured_by", job.judge)
    if version != job.version:
        return f"was measured by version {version} of {job.metric}: expected {job.version}"
    if told_by != job.judge:
        return f"was measured by weights told by '{str(told_by)[:16]}': expected '{job.judge[:16]}'"
    return ""


def _measured(measurement: Measurement) -> Measured:
    job = measurement.job
    metric, settings = (job.metric, _written(job.settings)) if isinstance(job, MeasureJob) else ("", "")
    return measurement.folder, metric, settings


def _written(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _by_method(pairs: Iterable[tuple[str, Measured]]) -> dict[str, set[Measured]]:
    by: dict[str, set[Measured]] = {}
    for method, measured in pairs:
        by.setdefault(method, set()).add(measured)
    return by


def absent(plan: Plan) -> list[str]:
    """The models beside the plan's own that are not here, such as one that takes hours to train: its jobs cannot be planned."""
    return [name for name in plan.other_models if not (name == TESTBED or is_hub_id(name) or Path(name).exists())]


def unopened_in(folder: Path) -> dict[str, str]:
    """Why plans of a folder cannot be opened here, by the plan's name, for those that want a model that is not here.

    Raises:
        ExpungeError: for a plan that cannot be read.
    """
    lacking = {file.stem: absent(read_plan(file)) for file in sorted(folder.glob("*.toml"))}
    return {name: f"It wants the model '{models[0]}', which is not here." for name, models in lacking.items() if models}


def answered_in(folder: Path) -> dict[str, frozenset[str]]:
    """`answered` of each plan of a folder that has results beside it, by the plan's name; not of those that cannot be opened.

    Raises:
        ExpungeError: for a plan that cannot be read or contradicts itself, or results that are damaged.
    """
    found: dict[str, frozenset[str]] = {}
    for file in sorted(folder.glob("*.toml")):
        results = file.with_suffix(".jsonl")
        if results.is_file():
            records = [row for row in read_lines(results) if "provenance" in row]
            plan = read_plan(file)
            found[file.stem] = frozenset() if absent(plan) else answered(plan, records)
    return found
