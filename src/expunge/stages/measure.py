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
from expunge.settings.layers import filled
from expunge.store import read_any_images, read_images, read_run


class Measured(NamedTuple):
    """A record, and the values behind it with the concept that each is of."""

    record: Record
    values: list[tuple[str, float]]


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
        whose = "images" if metric.any_reference else "the original's images"
        needed = f"{whose} to compare with (--reference)" if metric.paired else "no reference"
        raise ExpungeError(f"{name} with {'no ' if reference is None else 'a '}reference: expected {needed}")
    shots = read_images(folder)
    made = read_run(folder)
    others = [] if reference is None else (read_any_images if metric.any_reference else read_images)(reference)
    changed = [] if reference is None else read_run(reference).get("edits", [])
    if changed:
        raise ExpungeError(f"'{reference}' was made with edit {changed[0]['id']}: expected the original model's images")
    provenances = [e["provenance"] for e in made.get("edits", []) if e.get("provenance")]
    named = list(dict.fromkeys(t for p in provenances for t in p["targets"]))
    targets = named if targets is None else list(targets)
    labels = sorted({s.label for s in shots if s.label is not None})
    retain = [label for label in labels if label not in targets] if retain is None else list(retain)
    both = set(targets) & set(retain)
    if both:
        raise ExpungeError(f"'{both.pop()}' is both a target and a retained word: expected it in one of the two lists")
    absent = [t for t in targets if t not in labels]
    if absent and not labels and targets is named:
        targets = []  # prompts that ask for nothing in particular, such as captions
    elif absent:
        raise ExpungeError(
            f"'{folder}' has no image labelled '{absent[0]}': expected one of {', '.join(labels) or 'none'}"
        )
    told = knowledge(provenances)
    common: dict[str, Any] = {
        "subject": "recovered" if made.get("control") else "edited" if made.get("edits") else "original",
        "eraser": "+".join(p["eraser"] for p in provenances) or None,
        "concepts": targets or named,
        "model": made.get("model", "unknown"),
        "split": made.get("split", "unknown"),
        "seed": provenances[-1]["seed"] if provenances else 0,
        "knowledge": {**told, "same_judge": getattr(metric, "judge", None) in told["oracles"]},
        "provenance": {
            "metric": name,
            "settings": settings_of(metric),
            "edits": [e["id"] for e in made.get("edits", [])],
            "made_by": [{k: p[k] for k in ("eraser", "settings", "seconds", "cost")} for p in provenances],
            "retain_measured": retain,
            "images": folder.name,
            **({} if reference is None else _compared(reference, shots, others, metric.any_reference)),
            "strength": made.get("strength"),
            "control": made.get("control"),
            **({"attack": made["attack"]} if made.get("attack") else {}),
            "key": made.get("key"),
            "dtype": made.get("dtype"),
            "sampling": made.get("sampling"),
            "cost": made.get("cost"),
        },
    }
    return [reported(m, common) for m in metric.measure(shots, targets, retain, others)]


def reported(found: Measurement, common: Mapping[str, Any]) -> Measured:
    """The record of a measurement, with what the records of its run share."""
    told = dict(common)
    if found.instrument:
        told["provenance"] = {**common["provenance"], "instrument": dict(found.instrument)}
    ends = {end: round(number, 4) for end, number in found.interval._asdict().items()}
    record = Record(metric=found.metric, **ends, n=found.n, n_seeds=found.n_seeds, unit=found.unit, **told)
    return Measured(record, list(zip(found.labels, found.per_image, strict=True)))


def _compared(reference: Path, shots: Sequence[Shot], others: Sequence[Shot], any_images: bool) -> dict[str, Any]:
    """What images were compared with, and whether on the same seeds, if it has some."""
    if any_images and not (reference / "metadata.jsonl").is_file():
        return {"reference": reference.name}
    return {"reference": reference.name, "same_seeds": {s.seed for s in shots} <= {s.seed for s in others}}


def knowledge(provenances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the methods were told, over all edits."""
    return {
        "targets": [t for p in provenances for t in p["targets"]],
        "anchors": [_anchor(p["settings"]) if a is None else a for p in provenances for a in p["anchors"]],
        "templates": [t for p in provenances for t in p["settings"].get("templates", [])],
        "images": _shown(provenances),
        "retain": [r for p in provenances for r in p["retain"]],
        "random_texts": any(p["settings"].get(n, 0) for p in provenances for n in ("retain_random", "base_random")),
        "oracles": _oracles(provenances),
    }


PROMPTS = 50
"""Of how many prompts a record names each; of more it says the number, and the edit has them."""


def _shown(provenances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The images that methods learned from, by role; those of several edits together, the same ones once."""
    found: dict[str, list[dict[str, Any]]] = {}
    for role, shown in ((r, i) for p in provenances for r, i in p.get("images", {}).items()):
        told = found.setdefault(role, [])
        if "prompts" not in shown or shown not in told:  # without prompts, other images may look the same
            told.append(shown)
    return {role: _together(several) for role, several in found.items()}


def _together(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is told of several edits' images of one role."""
    prompts = list(dict.fromkeys(prompt for shown in several for prompt in shown.get("prompts", ())))
    return {
        **several[0],
        "count": sum(shown["count"] for shown in several),
        "given": all(shown["given"] for shown in several),
        **({"prompts": prompts if len(prompts) <= PROMPTS else len(prompts)} if prompts else {}),
    }


def _oracles(provenances: Sequence[dict[str, Any]]) -> list[str]:
    """The judges that settings were searched with, or that chose the images of a method."""
    searched = [p["search"]["judge"] for p in provenances if p.get("search")]
    chosen = [had["judge"] for p in provenances for had in p.get("images", {}).values() if had.get("judge")]
    return list(dict.fromkeys([*searched, *chosen]))


def _anchor(settings: dict[str, Any]) -> str | None:
    """What targets became that had no anchor of their own; None for a method, or a goal, that knows no anchor."""
    names = () if settings.get("goal") == "esd" else ("anchor", "neutral", "surrogate")
    return next((settings[name] for name in names if name in settings), None)


def build(name: str, settings: dict[str, Any]) -> Metric:
    """The metric called ``name`` with ``settings``.

    Raises:
        ExpungeError: for an unknown metric or setting.
    """
    return filled(Catalog("metrics").load(name), name, settings)
