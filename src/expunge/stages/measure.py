"""Measure: image folders in; records out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.catalog import Catalog
from expunge.core.eraser import settings_of
from expunge.core.errors import ExpungeError
from expunge.core.metric import Measurement, Metric
from expunge.core.query import Shot
from expunge.core.record import Record
from expunge.pretrained import clip
from expunge.settings.layers import filled
from expunge.stages import knowledge
from expunge.store import read_any_images, read_images, read_run


class Measured(NamedTuple):
    """A record, and the values behind it, each with the concept that it is of and, of one concept, with its prompt."""

    record: Record
    values: list[tuple[str, float] | tuple[str, float, str]]


def measure(
    metric: Metric,
    name: str,
    folder: Path,
    targets: Sequence[str] | None = None,
    retain: Sequence[str] | None = None,
    reference: Path | None = None,
) -> list[Record]:
    """Records of one image folder; see `measured`."""
    return [m.record for m in measured(metric, name, folder, targets, retain, reference)]


def measured(
    metric: Metric,
    name: str,
    folder: Path,
    targets: Sequence[str] | None = None,
    retain: Sequence[str] | None = None,
    reference: Path | None = None,
) -> list[Measured]:
    """Records of one image folder, with the values behind them.

    Args:
        metric: the metric with its settings.
        name: its catalog name, for the provenance.
        folder: images with their ``metadata.jsonl``.
        targets: concepts that should be gone; those of the folder's edits by default.
        retain: concepts that should have stayed; every other label in the folder by default.
        reference: what a metric that compares compares with: the original model's images of the same prompts, or (FID) any.

    Raises:
        ExpungeError: if there is a reference too many or too few, the folder is damaged, or says nothing about a target.
    """
    if metric.paired != (reference is not None):
        whose = "images" if metric.any_reference else f"the {metric.against}'s images"
        needed = f"{whose} to compare with (--reference)" if metric.paired else "no reference"
        raise ExpungeError(f"{name} with {'no ' if reference is None else 'a '}reference: expected {needed}")
    shots, run = read_images(folder), read_run(folder)
    others = [] if reference is None else _others(reference, metric)
    provenances = [e["provenance"] for e in run.get("edits", []) if e.get("provenance")]
    erased = list(dict.fromkeys(t for p in provenances for t in p["targets"]))
    words = _Words(list(erased if targets is None else targets), list(retain or ()))
    if not metric.any_label:
        words = _words(folder, shots, erased, targets, retain)
    compared = {} if reference is None else _compared(reference, shots, others, metric)
    known = knowledge.of_provenances(provenances, run.get("attack"))
    common: dict[str, Any] = {
        "subject": "recovered" if run.get("control") else "edited" if run.get("edits") else "original",
        "eraser": "+".join(p["eraser"] for p in provenances) or None,
        "concepts": words.targets or erased,
        "model": run.get("model", "unknown"),
        "split": run.get("split", "unknown"),
        "seed": provenances[-1]["seed"] if provenances else 0,
        "knowledge": {**known, "same_judge": knowledge.same_judge(getattr(metric, "judge", None), known["oracles"])},
        "provenance": {
            "metric": name,
            "version": metric.version,
            "measured_by": measured_by(metric),
            "settings": settings_of(metric),
            "edits": [e["id"] for e in run.get("edits", [])],
            "made_by": [{k: p[k] for k in ("eraser", "settings", "seconds", "cost")} for p in provenances],
            "retain_measured": words.retain,
            "images": folder.name,
            **compared,
            "strength": run.get("strength"),
            "control": run.get("control"),
            **({"attack": run["attack"]} if run.get("attack") else {}),
            **{key: run.get(key) for key in ("key", "dtype", "sampling", "cost")},
        },
    }
    return [reported(m, common) for m in metric.measure(shots, words.targets, words.retain, others)]


class _Words(NamedTuple):
    """What a folder of images is measured for."""

    targets: list[str]
    retain: list[str]


def _words(
    folder: Path,
    shots: Sequence[Shot],
    erased: Sequence[str],
    targets: Sequence[str] | None,
    retain: Sequence[str] | None,
) -> _Words:
    """The words that are given, or else those that were ``erased`` and all other labels.

    Raises:
        ExpungeError: if a word is in both lists, or no image is labelled with a target.
    """
    labels = sorted({s.label for s in shots if s.label is not None})
    gone = list(erased if targets is None else targets)
    kept = [label for label in labels if label not in gone] if retain is None else list(retain)
    both = set(gone) & set(kept)
    if both:
        raise ExpungeError(f"'{both.pop()}' is both a target and a retained word: expected it in one of the two lists")
    absent = [t for t in gone if t not in labels]
    if absent and not labels and targets is None:
        return _Words([], kept)  # prompts that ask for nothing in particular, such as captions
    if absent:
        raise ExpungeError(
            f"'{folder}' has no image labelled '{absent[0]}': expected one of {', '.join(labels) or 'none'}"
        )
    return _Words(gone, kept)


def _others(reference: Path, metric: Metric) -> list[Shot]:
    """The images that others are compared with.

    Raises:
        ExpungeError: if an edited model made them, and they should be the original's.
    """
    shots = (read_any_images if metric.any_reference else read_images)(reference)
    edits = read_run(reference).get("edits", [])
    if edits and metric.against == "original":
        raise ExpungeError(f"'{reference}' was made with edit {edits[0]['id']}: expected the original model's images")
    return shots


def reported(one: Measurement, common: Mapping[str, Any]) -> Measured:
    """The record of a measurement, with what the records of its run share."""
    shared = dict(common)
    if one.instrument:
        shared["provenance"] = {**common["provenance"], "instrument": dict(one.instrument)}
    ends = {end: round(number, 4) for end, number in one.interval._asdict().items()}
    record = Record(metric=one.metric, **ends, n=one.n, n_seeds=one.n_seeds, unit=one.unit, **shared)
    if one.prompts:
        return Measured(record, list(zip(one.labels, one.per_image, one.prompts, strict=True)))
    return Measured(record, list(zip(one.labels, one.per_image, strict=True)))


def _compared(reference: Path, shots: Sequence[Shot], others: Sequence[Shot], metric: Metric) -> dict[str, Any]:
    """What images were compared with, and whether on the same seeds, if it has some."""
    if metric.any_reference and not (reference / "metadata.jsonl").is_file():
        return {"reference": reference.name}
    seeds = {"reference": reference.name, "same_seeds": {s.seed for s in shots} <= {s.seed for s in others}}
    if metric.against == "original":
        return seeds
    made = read_run(reference)
    return {**seeds, "reference_model": made.get("model"), "reference_edits": [e["id"] for e in made.get("edits", [])]}


def told_by(settings: Mapping[str, Any]) -> dict[str, str]:
    """What the judges and the CLIP that a plug-in's settings name are told by, by setting; those that never change left out.

    A ``clip`` that is a number is no CLIP: it is the bound of a gradient's norm.
    """
    named = {name: settings[name] for name in ("oracle", "judge", "clip") if settings.get(name)}
    named = {name: value for name, value in named.items() if isinstance(value, str)}
    judges = Catalog("judges")
    said = {n: clip.identity(v) if n == "clip" else judges.open(v).identity() for n, v in named.items()}
    return {name: identity for name, identity in said.items() if identity}


def judge_of(settings: Mapping[str, Any]) -> str:
    """The same of its judge; empty where there is none, or nothing to tell."""
    return told_by(settings).get("judge", "")


def instrument_of(settings: Mapping[str, Any]) -> str:
    """The same of the judge, or else the CLIP, of a metric or an analysis."""
    said = told_by(settings)
    return said.get("judge") or said.get("clip", "")


def measured_by(metric: Metric) -> str:
    """What a metric's judge or CLIP, or the weights it uses itself, are told by, so that retrained ones measure again."""
    return instrument_of(settings_of(metric)) or metric.identity()


def build(name: str, settings: dict[str, Any]) -> Metric:
    """The metric called ``name`` with ``settings``.

    Raises:
        ExpungeError: for an unknown metric or setting.
    """
    return filled(Catalog("metrics").load(name), name, settings)
