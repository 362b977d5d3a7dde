"""Jobs: pure JSON in, one result file out; a result that exists is not computed again.

A job is an object with its room (one of `ROOMS`: ``erase``, ``generate`` …), everything the room needs,
and the keys of the jobs whose files it reads. Its own key is the sha256 of all that. `run_job` needs nothing else than a job
and a store, so that any executor can call it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from expunge import backbones
from expunge.core.backbone import Backbone
from expunge.core.concept import Concept
from expunge.core.cost import Cost, PeakBytes
from expunge.core.edit import Edit, Provenance
from expunge.core.errors import ExpungeError, unknown
from expunge.core.guidance import Key
from expunge.core.query import Query, queries
from expunge.settings.layers import filled
from expunge.stages import analyse, attack, erase, generate, measure, pairs, relearn
from expunge.store import (
    EDIT,
    FORMAT,
    KEY,
    check_new,
    claimed,
    load_edit,
    new_folder,
    read_json,
    read_queries,
    save_edit,
    write_json,
)

RESULT = "result.json"
"""The file in a job's folder that says it is done."""
IMAGES, QUERIES = "images", "queries"

Job = Mapping[str, Any]


def key(job: Job) -> str:
    """A job's content key; what the model is called, or where it lies, does not count."""
    counted = {name: value for name, value in job.items() if name != "model"}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def folder(job_key: str, room: str, store: Path) -> Path:
    """Where a job's files are."""
    return store / f"{room}-{job_key[:24]}"


def result(job: Job, store: Path) -> dict[str, Any] | None:
    """The result of a job that is done, or None.

    Raises:
        ExpungeError: if its file is damaged.
    """
    file = folder(key(job), job["room"], store) / RESULT
    return read_json(file) if file.is_file() else None


def run_job(job: Job, store: Path) -> dict[str, Any]:
    """Do a job whose upstream jobs are done, unless it is done already; returns its result.

    A job that is killed leaves nothing that counts: its folder appears, whole, when it is finished.

    Raises:
        ExpungeError: for an unknown room, a missing upstream result, or bad settings.
    """
    done = result(job, store)
    if done is not None:
        return done
    if job["room"] not in ROOMS:
        raise unknown("room", str(job["room"]), ROOMS)
    place = folder(key(job), job["room"], store)
    check_new(place, overwrite=True)
    with claimed(place):
        done = result(job, store)  # by another process, while this one waited
        if done is not None:
            return done
        start = time.perf_counter()
        with new_folder(place, marker=RESULT) as out:
            found = ROOMS[job["room"]](job, store, out)
            seconds = round(time.perf_counter() - start, 3)
            content = {"format": FORMAT, "job": dict(job), "seconds": seconds, **found}
            write_json(out / RESULT, content)
    return content


@lru_cache(maxsize=2)
def model(name: str, dtype: str) -> Backbone:
    """The model of a job, kept from one job to the next."""
    return backbones.load(name, dtype=dtype)


def _erase(job: Job, store: Path, out: Path) -> dict[str, Any]:
    """An edit and, where the method makes one, its key."""
    backbone = _model(job)
    eraser = erase.build(job["eraser"], job["settings"], None)
    targets = [Concept(name=name) for name in job["targets"]]
    images = _given(job, store)
    with backbone.attached(_edits(job.get("on", ()), store)):
        done = erase.run(backbone, job["eraser"], eraser, targets, job["retain"], job["seed"], job["salt"], images)
    save_edit(done, out / EDIT)
    if done.key is not None:
        save_edit(done.key, out / KEY)
    return {"edit": done.id, "cost": asdict(done.provenance.cost) if done.provenance else asdict(Cost())}


def _pairs(job: Job, store: Path, out: Path) -> dict[str, Any]:
    """Pairs of images of the original model."""
    backbone = _model(job)
    before = backbone.cost
    wish: pairs.Wish = filled(pairs.Wish, "pairs", job["pairs"])
    made = pairs.make(backbone, wish, out / IMAGES, guidance=job["guidance"], steps=job["steps"])
    return {"cost": asdict(backbone.cost - before), "pairs": made.count, "drawn": made.drawn}


def _given(job: Job, store: Path) -> dict[str, Path]:
    """The folders of a job's pairs by role, where it names some."""
    if "images" not in job:
        return {}
    return dict.fromkeys(pairs.ROLES, _upstream(job["images"], "pairs", store) / IMAGES)


def _relearn(job: Job, store: Path, out: Path) -> dict[str, Any]:
    """A key to the model with the edits of earlier jobs, learned anew."""
    backbone = _model(job)
    eraser = erase.build(job["eraser"], job["settings"], None)
    targets = [Concept(name=name) for name in job["targets"]]
    before = backbone.cost
    key = relearn.fresh_key(backbone, job["eraser"], eraser, targets, _edits(job["edits"], store), job["seed"])
    save_edit(key, out / KEY)
    return {"edit": key.id, "cost": asdict(backbone.cost - before)}


def _memory(job: Job, store: Path, out: Path) -> dict[str, Any]:
    """The most bytes that tensors take in an erasure's first updates, beside the model's own.

    (Counting slows a small model by half, so an erasure is not counted while it is timed.)
    """
    backbone = _model(job)
    with torch.no_grad():  # so that whatever is loaded at first use is there
        backbone.predict(backbone.noise(0), 1, backbone.encode([""]))
    eraser = erase.build(job["eraser"], job["settings"], None)
    targets = [Concept(name=name) for name in job["targets"]]
    task = erase.prepared(backbone, eraser, targets, job["retain"], job["seed"], job["salt"], _given(job, store))
    before = backbone.cost
    with PeakBytes() as memory:
        for step in islice(eraser.steps(backbone, task), job["updates"]):
            step.edit()
    return {"records": [], "values": [], "peak_bytes": memory.peak, "cost": asdict(backbone.cost - before)}


def _attack(job: Job, store: Path, out: Path) -> dict[str, Any]:
    """Adversarial queries against the edits of earlier jobs, or against the original."""
    backbone = _model(job)
    edits = _edits(job["edits"], store)
    targets = [Concept(name=name) for name in job["targets"]]
    built = attack.build(job["attack"], job["settings"])
    before = backbone.cost
    found = attack.run(
        backbone, job["attack"], built, edits, targets, _asked(job), job["draws"], strength=job.get("strength", 1.0)
    )
    attack.to_folder(found, out / QUERIES)
    return {"cost": asdict(backbone.cost - before), "queries": len(found.queries)}


def _asked(job: Job) -> list[Query]:
    prompts = [(prompt, label) for prompt, label in job["prompts"]]
    return queries(prompts, job["count"], job["seed"], job["guidance"], job["steps"], job.get("seeds", ()))


def _generate(job: Job, store: Path, out: Path) -> dict[str, Any]:
    """An image folder, with the edits of earlier jobs and perhaps the key of one of them."""
    backbone = _model(job)
    edits = _edits(job["edits"], store)
    how: dict[str, Any] = {"strength": job.get("strength", 1.0), "any_base": job["control"] is not None}
    control = job["control"]
    if control is not None:
        edits.append(CONTROLS[control](_held(job, store), job).only_for(job["only"]))
    adversarial = job.get("queries")  # the key of an attack
    stored = None if adversarial is None else read_queries(_upstream(adversarial, "attack", store) / QUERIES)
    asked = _asked(job) if stored is None else stored.queries
    how |= {"control": control, "attack": None if stored is None else stored.about}
    generate.to_folder(backbone, edits, asked, out / IMAGES, split=job["part"], **how)
    return {"cost": read_json(out / IMAGES / "run.json")["cost"], "images": len(asked)}


def _measure(job: Job, store: Path, out: Path) -> dict[str, Any]:
    """Records of one image folder, and the values behind them."""
    metric = measure.build(job["metric"], job["settings"])
    images = _upstream(job["images"], "generate", store) / IMAGES
    other = None if job.get("reference") is None else _upstream(job["reference"], "generate", store) / IMAGES
    measured = measure.measured(metric, job["metric"], images, job["targets"], job["retain"], other)
    return {
        "records": [m.record.as_json() for m in measured],
        "values": [[list(pair) for pair in m.values] for m in measured],
        "cost": asdict(Cost()),
    }


def _analyse(job: Job, store: Path, out: Path) -> dict[str, Any]:
    """Records and figures of an edit and its key, of the original model, or of an erasure that is run once more."""
    backbone = _model(job)
    before = backbone.cost
    analysis = analyse.build(job["analysis"], job["settings"])
    edits = _edits(job["edits"], store)
    held = _held(job, store) if job["key"] else None
    made, again = analyse.provenances(edits), None
    if job["training"] is not None:
        run = job["training"]
        aims = [Concept(name=name) for name in run["targets"]]
        given = _given(run, store)
        task = (aims, run["retain"], run["seed"], run["salt"], given)
        again = analyse.training(backbone, run["eraser"], run["settings"], *task)
        told = {name: run[name] for name in ("eraser", "settings", "targets", "retain", "seed")}
        told["images"] = {role: erase.had(shots, given.get(role)) for role, shots in again.task.images.items()}
        made = [Provenance(**told, anchors=[None for _ in aims], model=backbone.name, family=backbone.family)]
    prompts = {label: prompt for prompt, label in reversed(job["prompts"])}
    words = (job["targets"], job["retain"], prompts, job["first_seed"])
    how = analyse.How(job["template"], job["guidance"], job["steps"])
    study = analyse.planned(backbone, analysis, *words, edits, held, again, how)
    found = analyse.run(backbone, job["analysis"], analysis, study, made, out, job["part"])
    return {
        "records": [m.record.as_json() for m in found],
        "values": [[list(pair) for pair in m.values] for m in found],
        "cost": asdict(backbone.cost - before),
    }


ROOMS: dict[str, Callable[[Job, Path, Path], dict[str, Any]]] = {
    "pairs": _pairs,
    "erase": _erase,
    "memory": _memory,
    "attack": _attack,
    "relearn": _relearn,
    "generate": _generate,
    "measure": _measure,
    "analyse": _analyse,
}
CONTROLS: dict[str, Callable[[Key, Job], Key]] = {
    "own": lambda held, job: held,
    "random": lambda held, job: held.random(int(job["key"][:12], 16)),  # another one for each erasure
    "other": lambda held, job: held.rotated(),
    "other seed": lambda held, job: held,
    "fresh": lambda held, job: held,
}
"""What is injected, by the name of the control: the prompts of the key itself, or wrong ones made of it."""


def _held(job: Job, store: Path) -> Key:
    """The key that a job names, of an erasure or learned anew."""
    held = load_edit(_upstream(job["key"], job.get("key_room", "erase"), store) / KEY)
    if not isinstance(held, Key):
        raise ExpungeError(f"the key of job {job['key'][:8]} is a {type(held).__name__}: expected a key")
    return held


def _edits(keys: Sequence[str], store: Path) -> list[Edit]:
    """The edits of erase jobs, in order."""
    return [load_edit(_upstream(key, "erase", store) / EDIT) for key in keys]


def _model(job: Job) -> Backbone:
    backbone = model(job["model"], job["dtype"])
    if backbone.identity() != job["model_sha256"]:
        raise ExpungeError(f"model '{job['model']}' has changed since the job was planned: expected the same files")
    return backbone


def _upstream(job_key: str, room: str, store: Path) -> Path:
    found = folder(job_key, room, store)
    if not (found / RESULT).is_file():
        raise ExpungeError(f"'{found}' has no result: expected job {job_key[:8]} to be done first")
    return found
