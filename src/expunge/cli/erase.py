"""`expunge erase METHOD`: an edit that removes concepts."""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from expunge.cli.evaluations import evaluations
from expunge.cli.folders import image_folders
from expunge.cli.options import Model, Paths, Words, load_edits
from expunge.cli.plug_ins import called, in_effect
from expunge.cli.reporting import Reporting, settings_line
from expunge.core.errors import ExpungeError, ExpungeWarning, reason
from expunge.core.times import duration

if TYPE_CHECKING:
    from expunge.cli.audit import Audited
    from expunge.core.backbone import Backbone
    from expunge.core.edit import Edit
    from expunge.core.eraser import Eraser
    from expunge.stages.erase import EraseResult
    from expunge.stages.search import Goal, SearchResult, Tried
    from expunge.stages.verdict import Check, Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erase:
    """Remove concepts: writes edit.safetensors."""

    target: Words
    """A concept to remove, in words; repeat for several."""
    retain: Words = ()
    """A concept to keep, in words; repeat for several."""
    out: Path
    """Folder for edit.safetensors (and key.safetensors, for a method with a private key)."""
    images: Words = ()
    """Folder of images for a method that wants some (the model makes them otherwise; pairs by `expunge pairs`);
    TARGET=FOLDER for several targets, unsafe=FOLDER and safe=FOLDER for pairs in two folders."""
    on: Paths = ()
    """An edit the model already carries; repeat in order."""
    preset: bool = True
    """Start from the settings found for this kind of model, where there are any; otherwise the paper's."""
    check: bool = True
    """Look at a few images before and after, and say what is wrong (not for a large model on a CPU, unless told how many)."""
    check_images: int | None = None
    """How many images a word are looked at; the preset's if not given."""
    until: Words = ()
    """Search the method's strength until this much is erased, such as esr@1=0.97; another, such as psr@1=-0.05 (the default),
    says what that may cost the words to keep. On the seeds and the phrase of the dev sets."""
    budget: int = 8
    """Erasures that a search may try."""
    judge: str | None = None
    """Who tells what those images show; on the testbed its judge B for a search, and A for the look at the result."""
    audit: bool = False
    """Measure and attack the edit, and write a report with a verdict into audit/ beside it; see `expunge audit`."""
    audit_budget: str = "10m"
    """Time for that audit, such as 1m, 10m or 1h."""
    seed: int = 0
    """Seed of whatever the method draws."""
    overwrite: bool = False
    """Replace an existing edit."""
    resume: bool = False
    """Go on from the checkpoint that a killed or interrupted run of the same command left, if there is one."""
    model: Model = dataclasses.field(default_factory=Model)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


class _Look(NamedTuple):
    """What a look at an edit gave, or why there was none."""

    verdict: str
    outcome: "Outcome"
    check: "Check | None" = None


class _Erased(NamedTuple):
    """What an erasure gave, and what was seen of it."""

    result: "EraseResult"
    look: _Look
    search: "SearchResult | None"


def erase(argv: list[str]) -> None:
    """``expunge erase METHOD …``."""
    method, options, given = called("erasers", Erase, argv, "erase")
    from expunge.settings import presets
    from expunge.stages import erase as stage

    kind = options.model.kind()
    preset = presets.eraser(method, kind) if options.preset else {}
    eraser = stage.build(method, given, kind if options.preset else None)
    preset = in_effect(preset, eraser)
    if options.audit:
        _check_audit(options, kind)
    with stage.reserve(options.out, eraser, options.overwrite):
        erased = _erased(options, method, eraser)
    note = f"; preset for {kind}: {settings_line(preset)}" if preset else ""
    audit = _audit(options, erased.result.path) if options.audit else None
    _report(options.reporting, f"an edit by {method}", note, preset, erased, audit)


def _erased(options: Erase, method: str, eraser: "Eraser") -> _Erased:
    """Erase (by a search, if one is asked for), write, and look at the result."""
    from expunge.stages import erase as stage

    goal = _goal(options)
    folders = image_folders(options.images, eraser.wants(stage.concepts(options.target), options.retain))
    backbone = options.model.open()
    with backbone.attached(load_edits(options.on)):
        if goal is None:
            found, edit = None, _by_settings(options, backbone, method, eraser, folders)
        else:
            found = _by_search(options, backbone, method, eraser, folders, goal)
            edit = found.edit
        result = stage.to_folder(edit, options.out, options.overwrite)
        return _Erased(result, _looked(options, backbone, edit), found)


def _check_audit(options: Erase, kind: str) -> None:
    """Refuse an audit that could not be made, before anything is erased."""
    from expunge.cli.audit import check_model, check_report

    check_report(options.audit_budget)
    check_model(options.model)
    if kind != "testbed" and (options.judge is None or options.until):
        raise ExpungeError("--audit off the testbed: expected --judge, who tells what its images show, and no --until")


def _audit(options: Erase, edit: Path) -> "Audited":
    """The audit of what was erased; the judge that a search asked does not report.

    Raises:
        ExpungeError: if it cannot be made; the edit stays.
    """
    from expunge.cli.audit import Audit, audited

    asked = Audit(
        target=options.target,
        retain=options.retain,
        edit=(*options.on, edit),
        out=options.out / "audit",
        model=options.model,
        reporting=options.reporting,
        judge=None if options.until else options.judge,
        budget=options.audit_budget,
        overwrite=options.overwrite,
    )
    try:
        return audited(asked)
    except ExpungeError as error:
        raise ExpungeError(f"the edit is whole, in '{options.out}', but was not audited: {error}") from error


def _goal(options: Erase) -> "Goal | None":
    """What a search is to reach, if one is asked for; refuses options that exclude each other."""
    from expunge.stages.check import enough
    from expunge.stages.search import goal_of

    if options.check_images is not None:
        enough(options.check_images)
        if not options.check:
            raise ExpungeError(f"--check-images {options.check_images} with --no-check: expected one of the two")
    goal = goal_of(options.until, options.budget, options.judge) if options.until else None
    if goal is not None and options.resume:
        raise ExpungeError("--resume with --until: expected one of the two, as a search is not written down")
    return goal


def _by_settings(
    options: Erase, backbone: "Backbone", method: str, eraser: "Eraser", folders: Mapping[str, Path]
) -> "Edit":
    """The edit that the settings give."""
    from expunge.stages import erase as stage

    targets, retain = stage.concepts(options.target), list(options.retain)
    work = evaluations(backbone, eraser.cost(len(targets), len(retain)), eraser.wants(targets, retain), folders)
    with options.reporting.progress(f"erasing with {method}", *work):
        points = stage.checkpoints(options.out, options.resume)
        how = {"images": folders, "seed": options.seed, "checkpoints": points}
        return stage.run(backbone, method, eraser, targets, retain, **how)


def _by_search(
    options: Erase, backbone: "Backbone", method: str, eraser: "Eraser", folders: Mapping[str, Path], goal: "Goal"
) -> "SearchResult":
    """What a search of the method's strength finds."""
    from expunge.stages import erase as stage
    from expunge.stages.search import search

    def tried(row: "Tried") -> None:
        options.reporting.announce(
            f"strength {row.times:.3g}: ESR-1 {row.esr.value:.0f}, PSR-1 lost {row.lost:.1f} points"
        )

    targets, retain = stage.concepts(options.target), list(options.retain)
    with options.reporting.progress(f"searching with {method}", *evaluations(backbone)):
        how = {"images": folders, "seed": options.seed, "on_tried": tried}
        return search(backbone, method, eraser, targets, retain, goal, **how)


def _looked(options: Erase, backbone: "Backbone", edit: "Edit") -> _Look:
    """A few images before and after, where that is asked for, or cheap; what goes wrong here is said, and costs no edit."""
    from expunge.settings import presets
    from expunge.stages import check
    from expunge.store import CHECK, FORMAT, write_json

    if not options.check:
        return _Look("edit written; not looked at (--no-check)", "not looked at")
    cheap = backbone.kind == "testbed" or options.model.device != "cpu"
    if not (cheap or options.check_images):
        count = presets.check_images(backbone)
        return _Look(f"edit written; not looked at: --check-images {count} looks", "not looked at")
    options.reporting.announce("looking at a few images before and after (--no-check skips this)")
    try:
        how = {"images": options.check_images, "judge": options.judge}
        seen = check.check(backbone, edit, options.target, options.retain, **how)
    except (ExpungeError, RuntimeError) as error:
        verdict = f"edit written; could not be looked at: {reason(error)}"
        warnings.warn(verdict, ExpungeWarning, stacklevel=2)
        return _Look(verdict, "not looked at")
    check.warn(seen)
    write_json(options.out / CHECK, {"format": FORMAT, "edit": edit.id, **seen.as_json()}, overwrite=True)
    return _Look(seen.line(), seen.outcome, seen)


def _report(
    reporting: Reporting,
    what: str,
    note: str,
    preset: Mapping[str, Any],
    erased: _Erased,
    audit: "Audited | None",
) -> None:
    """Where the edit is, what it took, and what a look at it says: never that anything is gone without one."""
    result, look, search = erased
    cost = result.edit.provenance.cost.equivalents if result.edit.provenance else 0
    content = {
        "edit": str(result.path),
        "key": None if result.key is None else str(result.key),
        "id": result.edit.id,
        "seconds": result.seconds,
        "forward_equivalents": cost,
        "preset": dict(preset),
        "verdict": look.verdict,
        "outcome": look.outcome,
        "check": None if look.check is None else look.check.as_json(),
        "search": None if search is None else _as_json(search),
        **({} if audit is None else {"audit": audit.content}),
    }
    lines = [
        f"{result.path}: {what} ({duration(result.seconds)}, {cost:,} forward-equivalents{note})",
        "" if result.key is None else f"{result.key}: the private key to it (keep it to yourself)",
        "" if search is None else search.table(),
        look.verdict,
        "" if audit is None else audit.text,
    ]
    reporting.result(content, "\n".join(line for line in lines if line))


def _as_json(search: "SearchResult") -> dict[str, Any]:
    return {
        "reached": search.reached,
        "chosen": search.best._asdict(),
        "tried": [row._asdict() for row in search.tried],
    }
