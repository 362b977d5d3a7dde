"""The model card of an export: what was removed from what, by what, what was measured of it, and on what terms.

Its metadata are made and read by `huggingface_hub`, whose hub shows them: tags, licence, base model, results.
"""

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

from expunge.backbones.hub import is_hub_id
from expunge.backbones.pipeline import PipelineBackbone
from expunge.core.backbone import Backbone
from expunge.core.edit import Edit, strengths
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.results.files import AUDIT, RECORDS
from expunge.results.meanings import stem
from expunge.results.newest import newest
from expunge.store import read_json, read_lines

CARD = """---
{metadata}
---

# {model} with edits for concept erasure

Made by [expunge](https://pypi.org/project/expunge). Loads without it: {loading}.

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
UNMEASURED = """This card states what was done, not how well it worked: measure the model with `expunge generate` and
`expunge measure --out records.jsonl`, or audit it with `expunge audit`, and export again with `--records` before you publish.
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


class _Measured(NamedTuple):
    """What was measured, for people and for the hub."""

    text: str
    results: list[Any]
    """`EvalResult` of the edited model, a number each."""


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
    measured, terms = _measured(backbone, edits, told, each), _terms(backbone, told)
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
        found = [record for record in ours if not _complaint(record, backbone, edits, each)]
        if not any(_edited(record) for record in found):
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


def _edited(record: Mapping[str, Any]) -> bool:
    """Whether a record is of images that the edited model made, as it is exported: without a key."""
    return record.get("subject") == "edited"


def _complaint(record: Mapping[str, Any], backbone: Backbone, edits: Sequence[Edit], each: Sequence[float]) -> str:
    """Why a record is not of what is exported, nor of the original; empty if it is.

    Raises:
        ExpungeError: if it lacks what a record says.
    """
    try:
        ours, edits_of = [e.id for e in edits], record["provenance"]["edits"]
        if edits_of not in ([], ours):
            return f"a record is of edits {', '.join(edits_of)}: expected those exported, {', '.join(ours)}"
        strength = record["provenance"].get("strength")
        strength = 1.0 if strength is None else strength
        if record["model"] != backbone.name or (edits_of and strengths(strength, edits) != list(each)):
            wanted = ", ".join(f"{one:g}" for one in each) or "1"
            return f"a record is of {record['model']} at strength {strength}: expected {backbone.name} at {wanted}"
    except (KeyError, TypeError, ValueError) as error:
        raise ExpungeError(f"a record lacks {error}: expected what `expunge measure --out` writes") from error
    return ""


def _measured(backbone: Backbone, edits: Sequence[Edit], told: Told, each: Sequence[float]) -> _Measured:
    """The records as a table, beside those of the original model where there are some; and an audit's verdict."""
    if not told.records:
        return _Measured(UNMEASURED, [])
    rows = ["| images of | split | metric | value | 95 % interval | n |", "|---|---|---|---|---|---|"]
    results: list[Any] = []
    for r in told.records:
        complaint = _complaint(r, backbone, edits, each)
        if complaint:
            raise ExpungeError(complaint)
        try:
            under = _attack(r)
            of = f"{r['subject']}, under {under}" if under else r["subject"]
            name = f"{r['metric']}{r['provenance'].get('variant') or ''}"
            value = f"{r['value']:.1f} {r['unit']} | {r['low']:.1f} to {r['high']:.1f} | {r['n']}"
            rows.append(f"| {of} | {r['split']} | {name} | {value} |")
            if _edited(r) and math.isfinite(r["value"]) and not stem(r["metric"]).startswith("became"):
                results.append(_result(r, name, under))
        except (KeyError, TypeError, ValueError) as error:
            raise ExpungeError(f"a record lacks {error}: expected what `expunge measure --out` writes") from error
    said = told.verdict
    verdict = (
        [f"**{said['headline']}** {said['advice']}", "", *(f"- {line}" for line in said["lines"]), ""] if said else []
    )
    return _Measured("\n".join([*verdict, *rows]) + "\n", results)


def _attack(record: Mapping[str, Any]) -> str:
    """The attack that found what the images were asked; empty for none."""
    attack = record["provenance"].get("attack")
    return str(attack["attack"]) if attack else ""


def _result(record: Mapping[str, Any], name: str, under: str) -> Any:
    """A number as the hub's index of a model holds it."""
    from huggingface_hub import EvalResult

    concepts, provenance = ", ".join(record.get("concepts", ())), record["provenance"]
    about = f"images for {concepts or 'prompts'}" + (f", under the attack {under}" if under else "")
    return EvalResult(
        task_type="text-to-image",
        dataset_type="expunge-generated",
        dataset_name=f"{about} (made by the model itself)",
        dataset_config=f"attack-{under}" if under else "prompts",
        dataset_split=str(record["split"]),
        metric_type=stem(record["metric"]),
        metric_name=f"{name}, {record['unit']}" if record["unit"] else name,
        metric_value=record["value"],
        metric_args={
            "interval_95": [record["low"], record["high"]],
            "n": record["n"],
            "measured_by": {"metric": provenance.get("metric"), "settings": provenance.get("settings", {})},
        },
    )
