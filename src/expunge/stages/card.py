"""The model card of an export: what was removed from what, by what, what was measured of it, and on what terms.

Its metadata are made and read by `huggingface_hub`, whose hub shows them: tags, licence, base model, results.
"""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from expunge.backbones.hub import is_hub_id
from expunge.backbones.pipeline import PipelineBackbone
from expunge.core.backbone import Backbone
from expunge.core.edit import Edit, strengths
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.results.files import AUDIT, RECORDS
from expunge.results.newest import newest
from expunge.stages.card_numbers import complaint, edited, measured_of
from expunge.stages.pathless import pathless
from expunge.store import read_json, read_lines

CARD = """---
{metadata}
---

# {model} with edits for concept erasure

Made by expunge {expunge}. Loads without it: {loading}.

{edits}
## How it was measured

{measured}
The safety checker of the base model, if it had one, is not in this folder.

## Licence and base model

- base model: {base}
- licence: {licence}

## Use it responsibly

- Erasure is no proof of absence. Other words, learned embeddings, images to start from, fine-tuning or another sampler may
  bring a concept back. Say what was tested when you pass this on, and attack it before others do.
- Concepts that nobody measured may be harmed.
- Whoever has the base model, or a private key that was made with an edit, has what was removed.
- Removing a person's likeness or an artist's style should serve that person.
"""
EDIT = """## Edit {id}

- asked to remove: {targets}
- asked to keep: {retain}
- method: {eraser} ({settings})
- seed {seed}, {seconds} s, {equivalents} forward-equivalents, expunge {version}
- sha256 of the base's own values of the replaced tensors, as float32: `{base}`

"""
TERMS = ("license", "license_name", "license_link")
"""Where a card's metadata name its licence."""


@final
@dataclass(frozen=True, kw_only=True)
class Told:
    """What a card is told beside the edits."""

    records: Sequence[Mapping[str, Any]] = ()
    """What was measured of the model, or of the original."""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    """What an audit said: ``headline``, ``advice`` and ``lines``."""
    license: str = ""
    """The licence's id on the hub; the base model's own, where its folder has a card, if not given."""
    base_model: str = ""
    """The base model on the hub; the model's own name, if that is one, if not given."""

    def __post_init__(self) -> None:
        if self.license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ExpungeError(
                f"licence '{self.license}': expected its id on the hub, such as openrail++ or apache-2.0"
            )
        if self.base_model and not is_hub_id(self.base_model):
            raise ExpungeError(f"base model '{self.base_model}': expected its id on the hub, such as owner/name")


def card(
    backbone: Backbone,
    edits: Sequence[Edit],
    loading: str,
    told: Told,
    strength: float | Sequence[float] = 1.0,
    *,
    beside: bool = False,
) -> str:
    """The model card: metadata, what was asked to be removed by what, how to load it, what was measured, and on what terms.

    ``loading`` says how it is loaded; ``beside`` that the files hold changes beside the base model, not a model.

    Raises:
        ExpungeError: if a record is of images that other edits, or other strengths, made.
    """
    from huggingface_hub import ModelCard, ModelCardData

    each = strengths(strength, edits)
    shown, base = names(backbone, told)
    measured, terms = measured_of(told.records, told.verdict, backbone, edits, each), _terms(backbone, told)
    targets = [target for edit in edits if edit.provenance for target in edit.provenance.targets]
    without = f" without {', '.join(targets)}" if targets else ""
    results = {"eval_results": measured.results, "model_name": f"{shown}{without}"} if measured.results else {}
    metadata = ModelCardData(
        **{name: terms.get(name) for name in TERMS},
        base_model=base or None,
        base_model_relation=("adapter" if beside else "finetune") if base else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["concept-erasure", "expunge", *(["lora"] if beside else [])],
        **results,
    )
    text = CARD.format(
        metadata=metadata.to_yaml(),
        model=shown,
        loading=loading,
        expunge=version("expunge"),
        edits="".join(map(_described, edits, each)) or "No edit: the model as it was.\n\n",
        measured=measured.text,
        base=f"[{base}](https://huggingface.co/{base})" if base else f"{shown} (not known on the hub)",
        licence=_licence(terms, told),
    )
    ModelCard(text)  # reads its metadata again, and refuses what the hub could not
    return text


def _described(edit: Edit, strength: float) -> str:
    """An edit: what was asked, of which method, with which settings."""
    p, at = edit.provenance, "" if strength == 1.0 else f", at strength {strength:g}"
    if p is None:
        return f"## Edit {edit.id}{at}\n\nOf unknown origin: its file carries no provenance.\n\n"
    settings = {name: Path(str(value)).name if name in p.files else value for name, value in p.settings.items()}
    settings = pathless(settings)
    return EDIT.format(
        id=f"{edit.id}{at}",
        targets=", ".join(p.targets),
        retain=", ".join(p.retain) or "nothing by name",
        eraser=p.eraser,
        settings=", ".join(f"{k} {v}" for k, v in settings.items()),
        seed=p.seed,
        seconds=p.seconds,
        equivalents=p.cost.equivalents,
        version=p.expunge,
        base=edit.fields().get("base_sha256", {}).get("float32", "unknown (the edit does not say)"),
    )


def names(backbone: Backbone, told: Told) -> tuple[str, str]:
    """What the model is called in its card, and its base on the hub, if that is known: no path of this machine is shown."""
    name = str(backbone.name)
    base = told.base_model or (name if is_hub_id(name) else "")
    return base or Path(name).name or name, base


def _terms(backbone: Backbone, told: Told) -> dict[str, Any]:
    """The licence, as a card's metadata name it: as given, or as the base model's own card has it."""
    if told.license:
        return {"license": told.license}
    folder = backbone.folder if isinstance(backbone, PipelineBackbone) else None
    page = None if folder is None else folder.path / "README.md"
    if page is None or not page.is_file():
        return {}
    from huggingface_hub import ModelCard

    try:
        own = ModelCard(page.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except Exception:  # somebody else's page: what cannot be read is not known
        return {}
    return {name: own.get(name) for name in TERMS if isinstance(own.get(name), str)}


def _licence(terms: Mapping[str, Any], told: Told) -> str:
    """The licence in words; never a guess."""
    if not terms.get("license"):
        return "not known here. It remains under the base model's licence: see its card"
    name = " ".join(str(terms[part]) for part in TERMS if terms.get(part))
    return f"{name}, as its publisher says" if told.license else f"{name}, as the base model's own card says"


def read_told(
    paths: Iterable[Path], backbone: Backbone, edits: Sequence[Edit], strength: float | Sequence[float]
) -> Told:
    """What a card is told of ``edits``, from record files of ``expunge measure`` and from folders of an audit or a plan.

    Every record of a file must be of these edits, or of the original. Of a folder those are taken that are.

    Raises:
        ExpungeError: if there is no such file, it is damaged, or a folder has nothing of these edits.
    """
    records: list[Mapping[str, Any]] = []
    verdict: Mapping[str, Any] = {}
    for path in paths:
        if not path.is_dir():
            records += read_records([path])
            continue
        each, ours = strengths(strength, edits), read_records([path / RECORDS])
        found = [record for record in ours if not complaint(record, backbone, edits, each)]
        if not any(edited(record) for record in found):
            raise ExpungeError(
                f"'{path}' has no record of {', '.join(e.id for e in edits) or 'an edit'} on {backbone.name} at that strength: "
                "expected the folder of an audit, a plan or single commands that measured what is exported"
            )
        records += found
        audit = read_json(path / AUDIT) if (path / AUDIT).is_file() else {}
        if audit.get("asked", {}).get("ids") == [e.id for e in edits]:
            verdict = audit.get("verdict", {})
    return Told(records=records, verdict=verdict)


def read_records(files: Iterable[Path]) -> list[Mapping[str, Any]]:
    """Records of ``expunge measure`` for a card: the newest of each, and none of images that have been replaced since.

    Raises:
        ExpungeError: if there is no such file, or it is damaged.
    """
    rows = [(file, row) for file in files for row in read_lines(file)]
    kept = newest(rows)
    if len(kept) < len(rows):
        warnings.warn(
            f"{len(rows) - len(kept)} of {len(rows)} records are not in the card: the same was measured again later, or the "
            "images have been replaced",
            ExpungeWarning,
            stacklevel=2,
        )
    return kept
