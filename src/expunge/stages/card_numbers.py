"""The numbers of a model card: what each is of, in a table for people and as the hub's index holds it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from expunge.core.backbone import Backbone
from expunge.core.edit import Edit, strengths
from expunge.core.errors import ExpungeError
from expunge.results.group import Group
from expunge.results.meanings import is_kept, stem
from expunge.stages.pathless import pathless, without_paths

UNMEASURED = """This card states what was done, not how well it worked: measure the model with `expunge generate` and
`expunge measure --out records.jsonl`, or audit it with `expunge audit`, and export again with `--records` before you publish.
"""
HEAD = ["| images of | for | split | metric | value | 95 % interval | n |", "|---|---|---|---|---|---|---|"]
NAMED = 8
"""Concepts that a card names of a number, at most."""


class Measured(NamedTuple):
    """What was measured, for people and for the hub."""

    text: str
    results: list[Any]
    """`EvalResult` of the edited model, a number each."""


class _Of(NamedTuple):
    """What a number is of."""

    where: str
    """Its group in the table of a plan or an audit, or the attack; empty for images that were asked for by hand."""
    asked: str
    """What its images were asked for."""
    metric: str
    """Its name, with what tells it from the same with other settings."""


def edited(record: Mapping[str, Any]) -> bool:
    """Whether a record is of images that the edited model made, as it is exported: without a key."""
    return record.get("subject") == "edited"


def complaint(record: Mapping[str, Any], backbone: Backbone, edits: Sequence[Edit], each: Sequence[float]) -> str:
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


def measured_of(
    records: Sequence[Mapping[str, Any]],
    verdict: Mapping[str, Any],
    backbone: Backbone,
    edits: Sequence[Edit],
    each: Sequence[float],
) -> Measured:
    """The records as a table, beside those of the original model where there are some; and an audit's verdict.

    Raises:
        ExpungeError: if a record is of images that other edits, or other strengths, made; or lacks what a record says.
    """
    if not records:
        return Measured(UNMEASURED, [])
    rows, results = list(HEAD), []
    for r in records:
        wrong = complaint(r, backbone, edits, each)
        if wrong:
            raise ExpungeError(wrong)
        try:
            of = _of(r)
            whose, split = f"{r['subject']}, {of.where}" if of.where else r["subject"], without_paths(str(r["split"]))
            value = f"{r['value']:.1f} {r['unit']} | {r['low']:.1f} to {r['high']:.1f} | {r['n']}"
            rows.append(f"| {whose} | {of.asked} | {split} | {of.metric} | {value} |")
            if edited(r) and math.isfinite(r["value"]) and not stem(r["metric"]).startswith("became"):
                results.append(_result(r, of, split))
        except (KeyError, TypeError, ValueError) as error:
            raise ExpungeError(f"a record lacks {error}: expected what `expunge measure --out` writes") from error
    said = (
        [f"**{verdict['headline']}** {verdict['advice']}", "", *(f"- {one}" for one in verdict["lines"]), ""]
        if verdict
        else []
    )
    settings = [r["provenance"] for r in records] if said else None
    return Measured("\n".join([*(without_paths(line, settings) for line in said), *rows]) + "\n", results)


def _of(record: Mapping[str, Any]) -> _Of:
    """What a number is of, without a path of this machine."""
    provenance = record["provenance"]
    attack, kept = provenance.get("attack"), is_kept(record["metric"], provenance.get("metric") or "")
    group = provenance.get("group") or (str(Group(kind="attack", name=attack["attack"])) if attack else "")
    if provenance.get("attack_run"):
        group += f", run {provenance['attack_run']}"
    words = list(provenance.get("retain_measured") or ()) if kept else list(record.get("concepts") or ())
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return _Of(
        where=without_paths(group, (attack or {}).get("settings")),
        asked=", ".join(words[:NAMED]) + more if words else "what should stay" if kept else "prompts",
        metric=f"{record['metric']}{without_paths(provenance.get('variant') or '', provenance.get('settings'))}",
    )


def _result(record: Mapping[str, Any], of: _Of, split: str) -> Any:
    """A number as the hub's index of a model holds it, which takes numbers of one config and split for numbers of the same."""
    from huggingface_hub import EvalResult

    provenance, about = record["provenance"], f"images for {of.asked}" + (f", {of.where}" if of.where else "")
    return EvalResult(
        task_type="text-to-image",
        dataset_type="expunge-generated",
        dataset_name=f"{about} (made by the model itself)",
        dataset_config=f"{of.where or 'prompts'}: {of.asked}",
        dataset_split=split,
        metric_type=stem(record["metric"]),
        metric_name=f"{of.metric}, {record['unit']}" if record["unit"] else of.metric,
        metric_value=record["value"],
        metric_args={
            "interval_95": [record["low"], record["high"]],
            "n": record["n"],
            "measured_by": {
                "metric": provenance.get("metric"),
                "settings": pathless(provenance.get("settings", {})),
            },
        },
    )
