"""Analyse: a model with its edits in, or an erasure to run once more; records and figures out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.analysis import Analysis, Study, Training
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, check_targets, fill
from expunge.core.edit import Edit, Provenance
from expunge.core.eraser import files_of, settings_of
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Key
from expunge.results.files import FIGURES
from expunge.settings import presets
from expunge.settings.layers import filled
from expunge.stages import erase, knowledge
from expunge.stages.check import pair_for
from expunge.stages.importing import IMPORTED
from expunge.stages.measure import Measured, reported
from expunge.store import write_json


def build(name: str, settings: Mapping[str, Any]) -> Analysis:
    """The analysis called ``name`` with ``settings``.

    Raises:
        ExpungeError: for an unknown analysis or setting.
    """
    return filled(Catalog("analyses").load(name), name, settings)


def study(
    backbone: Backbone,
    analysis: Analysis,
    edits: Sequence[Edit],
    key: Key | None,
    targets: Sequence[str] = (),
    retain: Sequence[str] = (),
    seed: int = 0,
) -> Study:
    """What there is to look at, from an edit and what it says of itself: its own targets and retained words if none are given.

    Raises:
        ExpungeError: if the analysis needs more than is given.
    """
    known = provenances(edits)
    aims = list(targets) or [t for p in known for t in p.targets]
    kept = list(retain) or [r for p in known for r in p.retain if r not in aims]
    training = None
    if analysis.needs == "training":
        if len(edits) != 1 or not known:
            raise ExpungeError(f"{len(edits)} edits for an analysis along a training: expected one made by expunge")
        training = of_provenance(backbone, known[0], key)
    return planned(backbone, analysis, aims, kept, {}, seed, edits, key, training)


class Sampling(NamedTuple):
    """How words are drawn."""

    template: str
    guidance: float
    steps: int
    true_cfg: float


def planned(
    backbone: Backbone,
    analysis: Analysis,
    targets: Sequence[str],
    retain: Sequence[str],
    prompts: Mapping[str, str],
    seed: int,
    edits: Sequence[Edit],
    key: Key | None,
    training: Training | None,
    sampling: Sampling | None = None,
) -> Study:
    """A study of these words, each asked for by its prompt or, without one, by a template.

    Template, guidance and steps are the model's own, if ``sampling`` does not say otherwise; so is the scale of a distilled
    model's pair of predictions, where an edit acts through one alone.

    Raises:
        ExpungeError: if the analysis needs more than is given.
    """
    check_targets([Concept(name=t) for t in targets], list(retain))
    lacking = {
        "edit": not edits and "an edit (--edit)",
        "key": key is None and "an edit's private key (--key)",
        "training": training is None and "an edit that was trained (--edit)",
    }.get(analysis.needs)
    if lacking:
        raise ExpungeError(f"{type(analysis).__name__} with nothing to look at: expected {lacking}")
    own = Sampling(presets.prompt(backbone), *presets.generation(backbone), pair_for(backbone, edits))
    template, guidance, steps, true_cfg = sampling or own
    return Study(
        targets=targets,
        retain=retain,
        prompt=lambda word: prompts.get(word) or fill(template, word),
        guidance=guidance,
        steps=steps,
        batch=presets.batch(backbone),
        seed=seed,
        edits=edits,
        key=key,
        training=training,
        true_cfg=true_cfg,
    )


def of_provenance(backbone: Backbone, provenance: Provenance, key: Key | None) -> Training:
    """The erasure that gave an edit, to be run once more.

    Raises:
        ExpungeError: if the edit was imported, if it had images that are not to be had again, or if it drew with a secret that
            no key tells.
    """
    if IMPORTED in provenance.settings:
        raise ExpungeError(
            f"the edit was imported from '{provenance.settings[IMPORTED]}', whose training is not known: expected one that "
            "expunge trained"
        )
    if "stop" in provenance.search:
        raise ExpungeError(
            f"a judge ended {provenance.eraser} after {provenance.search['updates']} updates: expected an erasure "
            "without a stop"
        )
    if any(shown["given"] for shown in provenance.images.values()):
        raise ExpungeError(
            f"{provenance.eraser} was given images: expected an erasure that can be run again without them"
        )
    salt = "" if key is None else str(key.fields().get("salt", ""))
    if provenance.salt_sha256 and not salt:
        raise ExpungeError(f"{provenance.eraser} drew its random numbers with a secret: expected its key (--key)")
    aims = [Concept(name=t, anchor=a) for t, a in zip(provenance.targets, provenance.anchors, strict=True)]
    settings = dict(provenance.settings)
    if files_of(erase.build(provenance.eraser, settings, None)) != provenance.files:
        raise ExpungeError(
            f"a file that {provenance.eraser}'s settings name is not what it was: expected the same content"
        )
    return training(backbone, provenance.eraser, settings, aims, provenance.retain, provenance.seed, salt)


def training(
    backbone: Backbone,
    method: str,
    settings: Mapping[str, Any],
    targets: Sequence[Concept],
    retain: Sequence[str],
    seed: int,
    salt: str,
    images: Mapping[str, Path] | None = None,
) -> Training:
    """An erasure with its images, ready to run."""
    eraser = erase.build(method, dict(settings), None)
    return Training(eraser=eraser, task=erase.prepared(backbone, eraser, list(targets), retain, seed, salt, images))


def provenances(edits: Sequence[Edit]) -> list[Provenance]:
    """How edits were made, of those that say so."""
    return [e.provenance for e in edits if e.provenance is not None]


def run(
    backbone: Backbone,
    name: str,
    analysis: Analysis,
    what: Study,
    provenances: Sequence[Provenance],
    out: Path,
    split: str = "none",
) -> list[Measured]:
    """Look at a study; writes its figures into the folder ``out`` and returns its records with the values behind them."""
    before = backbone.cost
    findings = analysis.findings(backbone, what)
    for figure, drawn in findings.figures.items():
        write_json(out / FIGURES / f"{figure}.json", drawn.as_json())
    origins = [asdict(p) for p in provenances]
    known = knowledge.of_provenances(origins)
    common: dict[str, Any] = {
        "subject": "edited" if origins else "original",
        "eraser": "+".join(p["eraser"] for p in origins) or None,
        "concepts": list(what.targets),
        "model": backbone.name,
        "split": split,
        "seed": origins[-1]["seed"] if origins else 0,
        "knowledge": {**known, "same_judge": knowledge.same_judge(getattr(analysis, "judge", None), known["oracles"])},
        "provenance": {
            "analysis": name,
            "settings": settings_of(analysis),
            "edits": [e.id for e in what.edits],
            "made_by": [{k: p[k] for k in ("eraser", "settings", "seconds", "cost")} for p in origins],
            "retain_measured": list(what.retain),
            "first_seed": what.seed,
            "key": None if what.key is None else what.key.id,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "sampling": {
                "guidance": what.guidance,
                "steps": what.steps,
                **({} if what.true_cfg == 1 else {"true_cfg": what.true_cfg}),
            },
            "cost": asdict(backbone.cost - before),
        },
    }
    return [reported(m, common) for m in findings.measurements]
