"""The commands on images and models: generate, screen, recover, measure, analyse, export, demo."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from expunge.cli.options import (
    Hold,
    Images,
    Model,
    Numbers,
    Paths,
    Rows,
    Talk,
    Words,
    parse,
    parse_with,
    say,
    strength_of,
    told_record,
)
from expunge.core.errors import ExpungeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Make images with a model and its edits: a folder with metadata.jsonl (imagefolder layout)."""

    prompt: Words = ()
    """A prompt; repeat for several."""
    concept: Words = ()
    """A concept, put into the model's own template and written down as the label; repeat for several."""
    set: str | None = None
    """A concept set: its name (see `expunge list`), or a TOML file."""
    part: Literal["dev", "test"] = "test"
    """Part of the concept set."""
    queries: Path | None = None
    """Folder of queries that `expunge attack` wrote, instead of prompts, concepts and a set."""
    rows: OmitArgPrefixes[Rows] = dataclasses.field(default_factory=Rows)
    edit: Paths = ()
    """An edit.safetensors to attach; repeat in order."""
    strength: Numbers = ()
    """Strength of edits that have weights: 0 is nothing, 1 the edit as made; repeat for one of each edit."""
    any_base: bool = False
    """Attach edits that were made for another base."""
    hold: OmitArgPrefixes[Hold] = dataclasses.field(default_factory=Hold)
    images: OmitArgPrefixes[Images]


def generate(argv: list[str]) -> None:
    """``expunge generate …``."""
    options = parse(Generate, argv, "expunge generate")
    from expunge.stages.attack import read
    from expunge.store import check_new, load_edit, read_set
    from expunge.testbed import CONCEPTS

    if options.queries and (options.prompt or options.concept or options.set or options.rows != Rows()):
        raise ExpungeError(f"queries '{options.queries}' with prompts, concepts or a set: expected one of the two")
    stored = None if options.queries is None else read(options.queries)
    images = options.images
    check_new(images.out, images.overwrite)
    edits = [load_edit(path) for path in options.edit]
    backbone = images.model.open()
    if stored is not None:
        stored.check(backbone)
    part = None if options.set is None else read_set(options.set, CONCEPTS).part(options.part)
    asked = (
        images.asked(backbone, options.prompt, options.concept, part, options.rows)
        if stored is None
        else stored.queries
    )
    how = {
        "attack": None if stored is None else stored.about,
        "attack_edit": None if stored is None else stored.edit,
        "split": "none" if part is None else options.part,
        "strength": strength_of(options.strength),
        "any_base": options.any_base,
        "by": options.hold.filter(),
    }
    images.make(backbone, edits, asked, "generating", **how)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screen:
    """Look through a folder of images for concepts and words: prints what is found, keeps the rest if told where.

    Ends with code 2 if a file could not be looked at; such files are listed, and never kept.
    """

    images: Annotated[Path, arg(aliases=["-i"])]
    """Folder of images and of folders of them, with or without metadata.jsonl; each frame of an animation is looked at."""
    hold: OmitArgPrefixes[Hold] = dataclasses.field(default_factory=Hold)
    out: Path | None = None
    """A .jsonl file for what was found in each image."""
    keep: Path | None = None
    """A new folder for the images in which nothing was found, with their metadata."""
    roc: bool = False
    """Take the labels in the metadata for the truth: show what each threshold would hold back, of the concepts and the rest."""
    overwrite: bool = False
    """Replace an earlier file or folder."""
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def screen(argv: list[str]) -> None:
    """``expunge screen …``."""
    options = parse(Screen, argv, "expunge screen")
    from expunge.stages import filters
    from expunge.store import check_new, write_lines

    by = options.hold.filter()
    if by is None:
        raise ExpungeError("nothing to screen for: expected --hold-concept or --hold-word")
    if options.roc and not by.concepts:
        raise ExpungeError("--roc with words alone: expected --hold-concept, of which a judge is more or less sure")
    for path in (options.out, options.keep):
        if path is not None:
            check_new(path, options.overwrite)
    found = filters.screen(options.images, by)
    held = [s for s in found if s.reason and s.looked_at]
    left = [s for s in found if not s.looked_at]
    known = [s for s in found if s.looked_at and s.label is not None]
    curve = filters.roc([s.confidence for s in known], [s.label in by.concepts for s in known]) if options.roc else None
    if options.keep is not None:
        filters.keep(options.images, found, options.keep, options.overwrite)
    if options.out is not None:
        write_lines(options.out, [dataclasses.asdict(s) for s in found], overwrite=options.overwrite)
    lines = [f"{s.file_name}: {s.reason} ({s.confidence:.2f})" for s in held]
    lines += [f"{s.file_name}: not looked at: {s.reason}" for s in left]
    lines.append(f"{len(held)} of {len(found) - len(left)} images held back, {len(left)} not looked at")
    if curve is not None:
        lines += [
            "threshold  caught %  false alarms %",
            *("{:9.2f}  {:8.1f}  {:14.1f}".format(*p) for p in curve.points),
        ]
        lines.append(f"area under the curve {curve.area:.4f}")
    told = {} if curve is None else {"roc": {"area": curve.area, "points": [p._asdict() for p in curve.points]}}
    listed = {"held": [dataclasses.asdict(s) for s in held], "left": [dataclasses.asdict(s) for s in left]}
    options.talk.result({"images": len(found) - len(left), **listed, **told}, "\n".join(lines))
    if left:
        raise ExpungeError(
            f"{len(left)} files of '{options.images}' were not looked at, the first '{left[0].file_name}': {left[0].reason}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recover:
    """Give an erased model a concept back with its private key: makes images as `expunge generate` does."""

    edit: Paths
    """The edit.safetensors the key belongs to, after any it was made on; repeat in order."""
    key: Path
    """The key.safetensors that was written beside it."""
    concept: Words = ()
    """A concept to bring back; all of the key's if not given."""
    control: Literal["own", "random", "other"] = "own"
    """Its own prompts, random ones of the same norms, or each concept with the next one's."""
    images: OmitArgPrefixes[Images]


def recover(argv: list[str]) -> None:
    """``expunge recover …``."""
    options = parse(Recover, argv, "expunge recover")
    from expunge.core.edit import Key
    from expunge.store import check_new, load_edit

    images = options.images
    check_new(images.out, images.overwrite)
    edits = [load_edit(path) for path in options.edit]
    key = load_edit(options.key)
    if not isinstance(key, Key):
        raise ExpungeError(
            f"'{options.key}' is a {key.kind} edit: expected the key.safetensors of an erasure that made one"
        )
    for concept in options.concept:
        key.only_for(concept)  # refuses a concept that it does not hold
    wrong = {"random": lambda: key.random(images.seed or 0), "other": key.rotated}
    held = wrong[options.control]() if options.control in wrong else key
    backbone = images.model.open()
    asked = images.asked(backbone, concepts=options.concept or tuple(key.concepts))
    images.make(backbone, [*edits, held], asked, "recovering", split="none", control=options.control)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure a folder of images: prints records, and adds them to a file."""

    images: Annotated[Path, arg(aliases=["-i"])]
    """Folder made by `expunge generate`."""
    target: Words = ()
    """A concept that should be gone; the edits' own targets if not given."""
    retain: Words = ()
    """A concept that should have stayed; every other label in the folder if not given."""
    reference: Path | None = None
    """Folder to compare with: the original model's images of the same prompts; for fid and kid, photographs too."""
    out: Path | None = None
    """A .jsonl file to add the records to."""
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def measure(argv: list[str]) -> None:
    """``expunge measure METRIC …``."""
    from expunge.core.catalog import Catalog

    catalog = Catalog("metrics")
    if not argv or argv[0] in ("-h", "--help"):
        rows = "\n".join(f"  {e.name:18} {e.summary}" for e in catalog.entries().values())
        say(f"usage: expunge measure METRIC --images FOLDER [options]\n\nmetrics:\n{rows}")
        return
    name, rest = argv[0], argv[1:]
    cls = catalog.load(name)
    parsed = parse_with(cls(), name, Measure, rest, f"expunge measure {name}")
    options: Measure = parsed.options
    from expunge.results.newest import mark
    from expunge.stages import measure as stage
    from expunge.store import write_records

    aims, kept = options.target or None, options.retain or None
    records = stage.measure(parsed.settings, name, options.images, aims, kept, options.reference)
    measured = None if options.out is None else mark(options.images, options.out)
    if options.out is not None:
        write_records(options.out, records, append=True, measured=measured)
    rows = [{**r.as_json(), **({"measured": measured} if measured else {})} for r in records]
    options.talk.result({"records": rows}, "\n".join(map(told_record, records)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analyse:
    """Look into a model with its edits: writes records.jsonl and figures/*.json."""

    edit: Paths = ()
    """An edit.safetensors to look at; repeat in order."""
    key: Path | None = None
    """The key.safetensors that was written beside it."""
    target: Words = ()
    """A concept that is erased; the edits' own targets if not given."""
    retain: Words = ()
    """A concept that should have stayed; the edits' own retained words if not given."""
    seed: int = 0
    """First seed of the images."""
    out: Path
    """Folder for records and figures."""
    overwrite: bool = False
    """Replace an earlier analysis."""
    model: OmitArgPrefixes[Model] = dataclasses.field(default_factory=Model)
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def analyse(argv: list[str]) -> None:
    """``expunge analyse NAME …``."""
    from expunge.core.catalog import Catalog

    catalog = Catalog("analyses")
    if not argv or argv[0] in ("-h", "--help"):
        rows = "\n".join(f"  {e.name:18} {e.summary}" for e in catalog.entries().values())
        say(f"usage: expunge analyse NAME [--edit FILE] [--key FILE] --out FOLDER [options]\n\nanalyses:\n{rows}")
        return
    name, rest = argv[0], argv[1:]
    cls = catalog.load(name)
    parsed = parse_with(cls(), name, Analyse, rest, f"expunge analyse {name}")
    options: Analyse = parsed.options
    from expunge.core.edit import Key
    from expunge.results.files import FIGURES, RECORDS
    from expunge.stages import analyse as stage
    from expunge.store import load_edit, new_folder, write_records

    key = None if options.key is None else load_edit(options.key)
    if key is not None and not isinstance(key, Key):
        raise ExpungeError(f"'{options.key}' is a {key.kind} edit: expected the key.safetensors of an erasure")
    edits = [load_edit(path) for path in options.edit]
    with new_folder(options.out, options.overwrite, marker=RECORDS) as out:
        backbone = options.model.open()
        what = stage.study(backbone, parsed.settings, edits, key, options.target, options.retain, options.seed)
        found = stage.run(backbone, name, parsed.settings, what, stage.provenances(edits), out)
        records = [m.record for m in found]
        write_records(out / RECORDS, records)
    lines = [*map(told_record, records), f"{options.out}: records.jsonl, {FIGURES}/"]
    options.talk.result({"folder": str(options.out), "records": [r.as_json() for r in records]}, "\n".join(lines))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model with its edits fused, or adapters as a LoRA: with a model card, and no expunge needed to load it."""

    edit: Paths = ()
    """An edit.safetensors to fuse; repeat in order."""
    layout: Literal["diffusers", "ldm", "lora", "lora-kohya"] = "diffusers"
    """A whole diffusers folder, or one file (ldm: A1111, ComfyUI); or the edits alone as a LoRA, in two namings."""
    records: Paths = ()
    """A .jsonl file of `expunge measure` whose figures go into the model card, the newest of each; repeat for several."""
    strength: Numbers = ()
    """Strength of the edits: 0 is nothing, 1 as made; repeat for one of each edit."""
    out: Path
    """Folder for the model, or for the LoRA."""
    any_base: bool = False
    """Fuse edits that were made for another base."""
    overwrite: bool = False
    """Replace an existing folder."""
    model: OmitArgPrefixes[Model] = dataclasses.field(default_factory=Model)
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def export(argv: list[str]) -> None:
    """``expunge export …``."""
    options = parse(Export, argv, "expunge export")
    from expunge.stages import export as stage
    from expunge.store import check_new, load_edit

    check_new(options.out, options.overwrite)
    edits, backbone = [load_edit(path) for path in options.edit], options.model.open()
    how = {
        "records": stage.read_records(options.records),
        "strength": strength_of(options.strength),
        "any_base": options.any_base,
        "overwrite": options.overwrite,
    }
    if options.layout == "diffusers":
        stage.to_folder(backbone, edits, options.out, **how)
        told = f"{options.out}: load it with DiffusionPipeline.from_pretrained"
    elif options.layout == "ldm":
        stage.to_file(backbone, edits, options.out, **how)
        told = f"{options.out / stage.WHOLE}: a checkpoint for A1111 and ComfyUI"
    else:
        names = "kohya" if options.layout == "lora-kohya" else "diffusers"
        stage.lora_to_folder(backbone, edits, options.out, names, **how)
        told = f"{options.out}: load it with pipe.load_lora_weights"
    options.talk.result({"folder": str(options.out)}, told)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Erase a concept from the testbed with KPOP, give it back with the key, show all on equal seeds, and measure."""

    target: str = "church"
    """The concept to erase."""
    out: Path = Path("runs/demo")
    """Folder for edit.safetensors, key.safetensors, compare.png and records.jsonl."""
    count: int = 10
    """Images for each of the ten objects."""
    overwrite: bool = True
    """Replace what an earlier demo left."""
    resume: bool = False
    """Go on with what a killed or interrupted demo left, if it was the same."""
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def demo(argv: list[str]) -> None:
    """``expunge demo``."""
    options = parse(Demo, argv, "expunge demo")
    from expunge.stages import demo as stage

    how = {"overwrite": options.overwrite, "tell": options.talk.tell, "resume": options.resume}
    done = stage.run(options.target, options.out, options.count, **how)
    options.talk.result(
        {"folder": str(options.out), "records": [r.as_json() for r in done]}, stage.table(options.out, done)
    )
