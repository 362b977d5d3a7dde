"""The commands that erase, and that make the pairs of images some methods learn from."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tyro.conf import OmitArgPrefixes

from expunge.cli.options import Model, Paths, Talk, Words, in_effect, kind_asked, parse, parse_with, say, told_settings
from expunge.cli.progress import duration
from expunge.core.errors import ExpungeError, ExpungeWarning, reason

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.cost import Cost
    from expunge.core.edit import Edit
    from expunge.core.eraser import Eraser, Wish
    from expunge.stages.erase import EraseResult
    from expunge.stages.search import SearchResult, Tried
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
    seed: int = 0
    """Seed of whatever the method draws."""
    overwrite: bool = False
    """Replace an existing edit."""
    resume: bool = False
    """Go on from the checkpoint that a killed or interrupted run of the same command left, if there is one."""
    model: OmitArgPrefixes[Model] = dataclasses.field(default_factory=Model)
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def erase(argv: list[str]) -> None:
    """``expunge erase METHOD …``."""
    from expunge.core.catalog import Catalog

    if not argv or argv[0] in ("-h", "--help"):
        rows = "\n".join(f"  {e.name:18} {e.summary}" for e in Catalog("erasers").entries().values())
        say(f"usage: expunge erase METHOD --target WORDS --out FOLDER [options]\n\nmethods:\n{rows}\n\n"
            "expunge erase METHOD --help lists a method's settings.")  # fmt: skip
        return
    method, rest = argv[0], argv[1:]
    from expunge.settings import presets
    from expunge.stages import erase as stage

    kind = kind_asked(rest)
    use = {} if "--no-preset" in rest else presets.eraser(method, kind)
    start = stage.build(method, use, None)
    parsed = parse_with(start, method, Erase, rest, f"expunge erase {method}")
    options: Erase = parsed.options
    use = in_effect(use, parsed.settings)
    note = f"; preset for {kind}: {told_settings(use)}" if use else ""
    with stage.reserve(options.out, parsed.settings, options.overwrite):
        made = _made(options, method, parsed.settings)
    _tell(options.talk, f"an edit by {method}", note, use, made)


class _Look(NamedTuple):
    """What a look at an edit gave, or why there was none."""

    verdict: str
    outcome: "Outcome"
    found: "Check | None" = None


class _Made(NamedTuple):
    """What an erasure gave, and what was seen of it."""

    done: "EraseResult"
    look: _Look
    found: "SearchResult | None"


def _tell(talk: Talk, what: str, note: str, preset: Mapping[str, Any], made: _Made) -> None:
    """Where the edit is, what it took, and what a look at it says: never that anything is gone without one."""
    done, look, found = made
    cost = done.edit.provenance.cost.equivalents if done.edit.provenance else 0
    content = {
        "edit": str(done.path),
        "key": None if done.key is None else str(done.key),
        "id": done.edit.id,
        "seconds": done.seconds,
        "forward_equivalents": cost,
        "preset": dict(preset),
        "verdict": look.verdict,
        "outcome": look.outcome,
        "check": None if look.found is None else look.found.as_json(),
        "search": None if found is None else _as_json(found),
    }
    lines = [
        f"{done.path}: {what} ({duration(done.seconds)}, {cost:,} forward-equivalents{note})",
        "" if done.key is None else f"{done.key}: the private key to it (keep it to yourself)",
        "" if found is None else found.table(),
        look.verdict,
    ]
    talk.result(content, "\n".join(line for line in lines if line))


def _made(options: Erase, method: str, eraser: "Eraser") -> _Made:
    """Erase (by a search, if one is asked for), write, and look at the result."""
    from expunge.stages import erase as stage
    from expunge.stages.check import enough
    from expunge.stages.search import goal_of, search
    from expunge.store import load_edit

    if options.check_images is not None:
        enough(options.check_images)
        if not options.check:
            raise ExpungeError(f"--check-images {options.check_images} with --no-check: expected one of the two")
    goal = goal_of(options.until, options.budget, options.judge) if options.until else None
    if goal is not None and options.resume:
        raise ExpungeError("--resume with --until: expected one of the two, as a search is not written down")
    aims, retain = stage.concepts(options.target), list(options.retain)
    how = {"images": image_folders(options.images, eraser.needs(aims)), "seed": options.seed}
    backbone, found = options.model.open(), None
    with backbone.attached([load_edit(path) for path in options.on]):
        if goal is None:
            foreseen = spending(backbone, eraser.cost(len(aims), len(retain)), eraser.needs(aims), how["images"])
            with options.talk.progress(f"erasing with {method}", *foreseen):
                points = stage.checkpoints(options.out, options.resume)
                edit = stage.run(backbone, method, eraser, aims, retain, **how, checkpoints=points)
        else:
            with options.talk.progress(f"searching with {method}", *spending(backbone)):
                on_tried = partial(_tried, options.talk)
                found = search(backbone, method, eraser, aims, retain, goal, **how, on_tried=on_tried)
            edit = found.edit
        done = stage.to_folder(edit, options.out, options.overwrite)
        return _Made(done, _looked(options, backbone, edit), found)


class Spending(NamedTuple):
    """What work is measured by that evaluates a model: as `Talk.progress` takes it."""

    total: int
    unit: str
    counted: Callable[[], int]


def spending(
    backbone: "Backbone",
    foreseen: "Cost | None" = None,
    needs: "Mapping[str, Sequence[Wish]] | None" = None,
    given: Mapping[str, Path] | None = None,
) -> Spending:
    """Evaluations from now on, of those ``foreseen`` and of the images that are not ``given`` and will be made."""
    from expunge.settings import presets

    before, (_, steps) = backbone.cost.equivalents, presets.generation(backbone)
    made = sum(2 * steps * len(wanted) for role, wanted in (needs or {}).items() if role not in (given or {}))
    total = 0 if foreseen is None else foreseen.equivalents + made
    return Spending(total, "forward-equivalents", lambda: backbone.cost.equivalents - before)


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
    options.talk.tell("looking at a few images before and after (--no-check skips this)")
    try:
        how = {"images": options.check_images, "judge": options.judge}
        found = check.check(backbone, edit, options.target, options.retain, **how)
    except (ExpungeError, RuntimeError) as error:
        told = f"edit written; could not be looked at: {reason(error)}"
        warnings.warn(told, ExpungeWarning, stacklevel=2)
        return _Look(told, "not looked at")
    check.warn(found)
    write_json(options.out / CHECK, {"format": FORMAT, "edit": edit.id, **found.as_json()}, overwrite=True)
    return _Look(found.line(), found.outcome, found)


def _tried(talk: Talk, row: "Tried") -> None:
    talk.tell(f"strength {row.times:.3g}: ESR-1 {row.esr.value:.0f}, PSR-1 lost {row.lost:.1f} points")


def _as_json(found: "SearchResult") -> dict[str, Any]:
    return {
        "reached": found.reached,
        "chosen": found.best._asdict(),
        "tried": [row._asdict() for row in found.tried],
    }


def image_folders(given: Sequence[str], roles: Iterable[str]) -> dict[str, Path]:
    """Folders by role, from FOLDER or ROLE=FOLDER."""
    from expunge.stages.erase import folders

    names, parts = list(roles), [word.partition("=") for word in given]
    named = {name: path for name, sign, path in parts if sign and name in names}
    bare = [word for word in given if word.partition("=")[0] not in named]
    if len(bare) > 1 or (bare and named):
        raise ExpungeError(f"images '{bare[0]}' beside others: expected one folder, or TARGET=FOLDER for each target")
    return folders(bare[0] if bare else named, names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Make pairs of images, unsafe and safe, with the model, or put your own together: for `expunge erase duo --images`."""

    unsafe: Words = ()
    """Prompt of unsafe images; repeat for several."""
    safe: Words = ()
    """Prompt that they are redrawn with, the unsafe one as its negative prompt; one for each."""
    phrase: Words = ()
    """What prompts are put into, {} each of them: every --unsafe thing is redrawn as every --safe one in each phrase."""
    target: str | None = None
    """The concept that the judge must see in the unsafe image, and must not see in the safe one."""
    keep: Words = ()
    """A concept that it must see in both; or, repeated, one for each prompt."""
    count: int = 64
    """Pairs of each prompt."""
    strength: float = 0.75
    """Share of the denoising steps that redraw the unsafe image; 0.8 for violence."""
    tries: int = 20
    """Images that may be drawn for one that is accepted."""
    judge: str | None = None
    """Who looks; on the testbed its judge B. It must not be the judge that reports."""
    threshold: float = 0.25
    """From which confidence on the judge sees a concept, 0 to 1."""
    unsafe_images: Path | None = None
    """Your own unsafe images, instead of prompts."""
    safe_images: Path | None = None
    """Your own safe images: each with the file name of its other half."""
    guidance: float | None = None
    """Scale of classifier-free guidance; the model's own if not given."""
    steps: int | None = None
    """Denoising steps; the model's own if not given."""
    batch: int | None = None
    """Images at a time; the model's own if not given."""
    seed: int = 0
    """Seed of all that is drawn."""
    out: Path
    """Folder for the pairs, their metadata.jsonl, and sheet.png, which shows them all."""
    overwrite: bool = False
    """Replace an existing folder."""
    model: OmitArgPrefixes[Model] = dataclasses.field(default_factory=Model)
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def pairs(argv: list[str]) -> None:
    """``expunge pairs …``."""
    options: Pairs = parse(Pairs, argv, "expunge pairs")
    from expunge.stages import pairs as stage
    from expunge.store import check_new

    check_new(options.out, options.overwrite)
    given = (options.unsafe_images, options.safe_images)
    if any(given):
        prompts = [*options.unsafe, *options.safe]
        if options.unsafe_images is None or options.safe_images is None or prompts:
            extra = f"prompt '{prompts[0]}'" if prompts else "one folder"
            raise ExpungeError(
                f"{extra} with images of your own: expected --unsafe-images and --safe-images, and no prompt"
            )
        done = stage.take(options.unsafe_images, options.safe_images, options.out, options.overwrite)
    else:
        names = ("unsafe", "safe", "count", "strength", "target", "keep", "judge", "threshold", "tries", "seed")
        wanted = {name: getattr(options, name) for name in names}
        if len(options.keep) < 2:
            wanted["keep"] = next(iter(options.keep), None)
        if options.phrase:
            wanted |= stage.crossed(options.phrase, options.unsafe, options.safe)._asdict()
        wish = stage.Wish(**wanted)
        total = 2 * wish.count * len(wish.unsafe)
        with options.talk.progress("drawing pairs", total, "images accepted") as advance:
            how = {"guidance": options.guidance, "steps": options.steps, "batch": options.batch}
            done = stage.make(
                options.model.open(), wish, options.out, **how, overwrite=options.overwrite, on_accepted=advance
            )
    told = f"{done.folder}: {done.count} pairs" + (f" ({done.drawn} images drawn)" if done.drawn else "")
    options.talk.result(
        {"folder": str(done.folder), "pairs": done.count, "drawn": done.drawn},
        f"{told}; see {done.folder / stage.SHEET}",
    )
