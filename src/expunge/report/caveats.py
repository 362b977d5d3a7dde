"""What a run does not show, from what it has and what it lacks."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from expunge.report.run import ORIGINAL, Run
from expunge.results.group import OTHERS, SET, Group
from expunge.results.meanings import MISSED, plain, stem
from expunge.results.rows import Row, group_of, numbers

FEW = 100
"""Images below which a share is told only roughly."""
VALID = 95.0
"""Percent of pictures below which erasure may be collapse."""
COUNTED = ("ner", *map(stem, MISSED))
"""Numbers that count images of targets."""
KEY = Group(kind="key", control="own")
WRONG_KEYS = {Group(kind="key", control=control) for control in ("random", "other")}
"""Controls that show what a key alone does."""


class Caveat(NamedTuple):
    """One thing that a reader should not conclude."""

    title: str
    text: str


def caveats(run: Run) -> list[Caveat]:
    """What ``run`` does not show, most important first."""
    rows = numbers(run.summary)
    return [*_attacks(run), *_model(run), *_judge(run, rows), *_collapse(run, rows), *_rest(run, rows)]


def _attacks(run: Run) -> Iterator[Caveat]:
    provenances = [record["provenance"] for record in run.records]
    attacked = any("attack" in p or group_of(p).kind == "attack" for p in provenances)
    if not attacked:
        yield Caveat(
            "Nobody attacked",
            "No attack was run. The figures hold for the prompts that were asked; they say nothing of searched prompts, "
            "embeddings, image-to-image, or a few steps of training, which bring concepts back in published work.",
        )


def _model(run: Run) -> Iterator[Caveat]:
    models = run.values("model")
    if any(model.startswith("testbed") for model in models):
        yield Caveat(
            "This is the testbed",
            "A 64-pixel model of emoji artwork, trained by this project so that methods can be compared on a laptop. "
            "Neither the figures nor the order of methods carries over to Stable Diffusion by itself.",
        )
    if "dev" in run.values("split") or run.plan.get("part") == "dev":
        yield Caveat(
            "Settings were chosen here",
            "These are the dev concepts, prompts and seeds, on which settings may be chosen. Report the test part instead.",
        )


def _judge(run: Run, rows: Sequence[Row]) -> Iterator[Caveat]:
    judges = sorted({str(r["provenance"].get("settings", {}).get("judge", "")) for r in run.records} - {""})
    if judges:
        error = " The original model was not measured, so its misses are not known."
        if missed := _missed(run, rows):
            shares = ", ".join(f"{r['value']:.1f} % [{r['low']:.1f}, {r['high']:.1f}]{name}" for name, r in missed)
            error = (
                f" On the original model it misses {shares} of the targets that were asked for: no method is to be credited "
                "with those."
            )
        count = "One network looked" if len(judges) == 1 else f"{len(judges)} judges looked"
        yield Caveat(
            "Judges err",
            f"{count} ({', '.join(judges)}).{error} It names what it was trained on; what it has no word for, it does not see. "
            "Compare it with people: expunge label.",
        )
    if any(r["knowledge"].get("same_judge") for r in run.records):
        yield Caveat(
            "The judge was asked before", "A search or a method used the judge that reports, which flatters it."
        )


def _missed(run: Run, rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """What judges miss on the original model, each with what tells it from others, if there are several."""
    own = [r for r in rows if r["method"] in _originals(run) and group_of(r) == SET]
    found = next((some for name in MISSED if (some := [r for r in own if plain(r["metric"]) == name])), [])
    alone = len(found) == 1
    return [("" if alone else f" {r['method']}{r['metric'].removeprefix(plain(r['metric']))}", r) for r in found]


def _originals(run: Run) -> set[str]:
    """Rows of the original model: a plan calls it so, a folder has it under the name of whatever images have no edits."""
    if run.plan:
        return {ORIGINAL}
    return {ORIGINAL, *(str(r["provenance"].get("method")) for r in run.records if r.get("subject") == ORIGINAL)}


def _collapse(run: Run, rows: Sequence[Row]) -> Iterator[Caveat]:
    edited = [r for r in rows if plain(r["metric"]) == "valid_rate" and group_of(r) == SET]
    few = [r for r in edited if r["value"] < VALID and r["method"] not in _originals(run)]
    bad = [f"{r['method']} ({r['value']:.0f} %)" for r in few]
    if bad:
        yield Caveat(
            "Some images are no pictures",
            f"Of {', '.join(dict.fromkeys(bad))} fewer than {VALID:.0f} % of the target's images are pictures at all; part of "
            "what counts as erased is noise or blank.",
        )
    if rows and not edited:
        yield Caveat(
            "Collapse was not measured", "No valid-image rate is among the records: noise would count as erased."
        )


def _rest(run: Run, rows: Sequence[Row]) -> Iterator[Caveat]:
    counted = [r for r in rows if group_of(r) == SET and "n" in r and stem(r["metric"]) in COUNTED]
    if counted and min(r["n"] for r in counted) < FEW:
        least = min(r["n"] for r in counted)
        yield Caveat("Few images", f"Some shares stand on {least} images. Read the intervals, not the values.")
    if run.erasures and max((r.get("training_seeds", 1) for r in rows), default=1) < 2:
        yield Caveat(
            "One training seed",
            "Each edit was trained once at most: intervals cover concepts and noise, not how much training varies.",
        )
    if rows and not any(group_of(r) == OTHERS for r in rows):
        yield Caveat(
            "What nobody named was not looked at",
            "No prompts beside the targets and the concepts to keep were measured, so damage elsewhere would not be seen.",
        )
    controls = {group_of(r) for r in rows if group_of(r).kind == "key"}
    if KEY in controls and not controls & WRONG_KEYS:
        yield Caveat(
            "The key has no control", "Without random or exchanged prompts, what came back may not be the key's doing."
        )
    undecided = sum(r.get("verdict") == "undecided" for r in run.summary)
    if undecided:
        yield Caveat(
            "Undecided is not equal",
            f"{undecided} of the differences are undecided: neither a difference nor its absence is shown.",
        )
    if run.outdated:
        yield Caveat(
            "Some records were left out",
            f"{run.outdated} records are of images that have been replaced, or were measured again later: the newest count.",
        )
    if run.apart:
        yield Caveat(
            "Plans and audits have reports of their own",
            f"What these folders hold is not shown here: {', '.join(run.apart)} (expunge report FOLDER).",
        )
    if run.gone:
        yield Caveat(
            "Some images are not here",
            f"{run.gone} image folders that were measured are no longer there (expunge clean frees them); their numbers are.",
        )
    yield Caveat(
        "Only some images are covered",
        "Images are covered by the words of their prompts and labels (add yours with --blur), not by what they show. An edited "
        "model may draw what no prompt asked for.",
    )
