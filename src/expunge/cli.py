"""The command line. Each command is a dataclass of options; what is heavy is imported by the command that needs it."""

import contextlib
import dataclasses
import difflib
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from expunge.core.errors import ExpungeError, ExpungeWarning, unknown

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.concept import Part
    from expunge.core.edit import Edit
    from expunge.core.query import Query

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

Words = UseAppendAction[tuple[str, ...]]
Paths = UseAppendAction[tuple[Path, ...]]


def say(text: str) -> None:
    """A line of result on standard output."""
    sys.stdout.write(text + "\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Which model, and how to run it."""

    model: str = "testbed"
    """`testbed`, a local diffusers folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:0`, `mps` (GPU untested)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the weights while they run."""

    def open(self) -> "Backbone":
        """Load the model."""
        from expunge import backbones

        return backbones.load(self.model, device=self.device, dtype=self.dtype, revision=self.revision)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Talk:
    """How to report."""

    json: bool = False
    """Print one JSON object instead of text."""
    quiet: bool = False
    """Print nothing but errors."""

    def result(self, content: dict[str, Any], text: str) -> None:
        """Print a result in the form asked for."""
        if self.json:
            say(json.dumps(content, sort_keys=True))
        elif not self.quiet:
            say(text)

    def tell(self, line: str) -> None:
        """Say on standard error what begins, unless it would disturb."""
        if not (self.quiet or self.json):
            sys.stderr.write(f"{line}\n")

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int], None] | None]:
        """A progress bar on standard error, unless it would disturb."""
        if self.quiet or self.json or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda n: bar.advance(task, n)


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
    """Folder of images for a method that wants some (the model makes them otherwise); TARGET=FOLDER for several targets."""
    on: Paths = ()
    """An edit the model already carries; repeat in order."""
    preset: bool = True
    """Start from the settings found for this kind of model, where there are any; otherwise the paper's."""
    seed: int = 0
    """Seed of whatever the method draws."""
    overwrite: bool = False
    """Replace an existing edit."""
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
    from expunge import backbones
    from expunge.stages import erase as stage
    from expunge.stages import presets

    kind = backbones.kind_of(_lenient(Model, rest).model)
    use = {} if "--no-preset" in rest else presets.eraser(method, kind)
    start = stage.build(method, use, None)
    parsed = _parse_with(start, method, Erase, rest, f"expunge erase {method}")
    options: Erase = parsed.options
    with options.talk.progress(f"erasing with {method}", getattr(parsed.settings, "iterations", 1)) as advance:
        done = stage.to_folder(
            options.model.open(),
            method,
            parsed.settings,
            stage.concepts(options.target),
            list(options.retain),
            options.out,
            attached=options.on,
            images=_image_folders(options.images, options.target),
            seed=options.seed,
            overwrite=options.overwrite,
            on_step=None if advance is None else lambda _: advance(1),
        )
    cost = done.edit.provenance.cost.equivalents if done.edit.provenance else 0
    note = f"preset {use} for {kind}; " if use else ""
    options.talk.result(
        {
            "edit": str(done.path),
            "key": None if done.key is None else str(done.key),
            "id": done.edit.id,
            "seconds": done.seconds,
            "forward_equivalents": cost,
            "preset": use,
        },
        f"{done.path}: {', '.join(options.target)} removed by {method} ({note}{done.seconds:.1f} s, cost {cost} forwards)"
        + ("" if done.key is None else f"\n{done.key}: the private key, which brings it back (keep it to yourself)"),
    )


def _image_folders(given: Sequence[str], targets: Sequence[str]) -> dict[str, Path]:
    """Folders by target, from FOLDER or TARGET=FOLDER."""
    from expunge.core.errors import ExpungeError
    from expunge.stages.erase import concepts, folders

    parts = [word.partition("=") for word in given]
    named = {name: path for name, sign, path in parts if sign and name in targets}
    bare = [word for word in given if word.partition("=")[0] not in named]
    if len(bare) > 1 or (bare and named):
        raise ExpungeError(f"images '{bare[0]}' beside others: expected one folder, or TARGET=FOLDER for each target")
    return folders(bare[0] if bare else named, concepts(targets))


def _parse_with(settings: Any, name: str, options: type, argv: list[str], prog: str) -> Any:
    """Parse a plug-in's settings (from the values of ``settings`` on) together with a command's options."""
    cls = type(settings)
    described = OmitArgPrefixes[Annotated[cls, arg(help=f"Settings of {name}.")]]
    both = dataclasses.make_dataclass(
        "Options",
        [
            ("settings", described, dataclasses.field(default_factory=lambda: settings)),
            ("options", OmitArgPrefixes[options]),
        ],
        kw_only=True,
    )
    both.__doc__ = (cls.__doc__ or "").split("\n")[0]
    return parse(both, argv, prog)


def _lenient(cls: type, argv: list[str]) -> Any:
    """Parse what belongs to ``cls``, whatever else there is; its defaults if that fails."""
    if "--help" in argv or "-h" in argv:
        argv = [a for a in argv if a not in ("--help", "-h")]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return tyro.cli(cls, args=argv, return_unknown_args=True, add_help=False)[0]
        except SystemExit:
            return cls()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Which images, how they are sampled, and where they go."""

    count: int = 4
    """Images for each prompt."""
    seed: int | None = None
    """First seed; the concept set's own if one is given, or 0."""
    guidance: float | None = None
    """Scale of classifier-free guidance; the model's own if not given."""
    steps: int | None = None
    """Denoising steps; the model's own if not given."""
    batch: int | None = None
    """Images at a time; the model's own if not given."""
    out: Path
    """Folder for the images."""
    overwrite: bool = False
    """Replace an existing folder."""
    model: OmitArgPrefixes[Model] = dataclasses.field(default_factory=Model)
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)

    def asked(
        self, backbone: "Backbone", prompts: Words = (), concepts: Words = (), part: "Part | None" = None
    ) -> "list[Query]":
        """Queries for prompts, for concepts in the model's own template, and for a part of a concept set."""
        from expunge.core.query import queries
        from expunge.stages import generate as stage
        from expunge.stages import presets

        guidance, steps = presets.generation(backbone)
        guidance = guidance if self.guidance is None else self.guidance
        steps = steps if self.steps is None else self.steps
        if steps < 1 or self.count < 1:
            raise ExpungeError(f"steps {steps} and count {self.count}: expected both to be 1 or more")
        template = presets.prompt(backbone)
        wanted: list[tuple[str, str | None]] = [(p, None) for p in prompts]
        wanted += [(stage.fill(template, c), c) for c in concepts]
        wanted += [] if part is None else list(part.prompts)
        first = part.seed if self.seed is None and part is not None else self.seed or 0
        return queries(wanted, self.count, first, guidance, steps)

    def make(self, backbone: "Backbone", edits: "list[Edit]", queries: "list[Query]", title: str, **how: Any) -> None:
        """Generate into the folder, with a progress bar; ``how`` goes to the stage."""
        from expunge.stages import generate as stage

        with self.talk.progress(title, len(queries)) as advance:
            made = {"batch": self.batch, "overwrite": self.overwrite, "on_batch": advance}
            stage.to_folder(backbone, edits, queries, self.out, **made, **how)
        self.talk.result({"folder": str(self.out), "images": len(queries)}, f"{self.out}: {len(queries)} images")


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
    edit: Paths = ()
    """An edit.safetensors to attach; repeat in order."""
    strength: float = 1.0
    """Strength of weights edits: 0 is nothing, 1 the edit as made."""
    any_base: bool = False
    """Attach edits that were made for another base."""
    images: OmitArgPrefixes[Images]


def generate(argv: list[str]) -> None:
    """``expunge generate …``."""
    options = parse(Generate, argv, "expunge generate")
    from expunge.store import check_new, load_edit, read_set
    from expunge.testbed import CONCEPTS

    images = options.images
    check_new(images.out, images.overwrite)
    edits = [load_edit(path) for path in options.edit]
    backbone = images.model.open()
    part = None if options.set is None else read_set(options.set, CONCEPTS).part(options.part)
    asked = images.asked(backbone, options.prompt, options.concept, part)
    how = {
        "split": "none" if part is None else options.part,
        "strength": options.strength,
        "any_base": options.any_base,
    }
    images.make(backbone, edits, asked, "generating", **how)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure a folder of images: prints records, and adds them to a file."""

    images: Annotated[Path, arg(aliases=["-i"])]
    """Folder made by `expunge generate`."""
    target: Words = ()
    """A concept that should be gone; the edits' own targets if not given."""
    retain: Words = ()
    """A concept that should have stayed; every other label in the folder if not given."""
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
    parsed = _parse_with(cls(), name, Measure, rest, f"expunge measure {name}")
    options: Measure = parsed.options
    from expunge.stages import measure as stage
    from expunge.store import write_records

    records = stage.measure(parsed.settings, name, options.images, options.target or None, options.retain or None)
    if options.out is not None:
        write_records(options.out, records, append=True)
    lines = [f"{r.metric:24} {r.value:6.1f} {r.unit} [{r.low:.1f}, {r.high:.1f}]  n = {r.n}" for r in records]
    options.talk.result({"records": [r.as_json() for r in records]}, "\n".join(lines))


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
class Bench:
    """Run a plan: a grid of methods, concepts and seeds. Started again, it goes on where it was."""

    plan: Positional[Path]
    """A TOML plan; see docs/plans.md."""
    dry_run: bool = False
    """List the jobs, alike ones together, with the evaluations and minutes they should take, and run none."""
    changed: bool = False
    """Accept that the plan's text has changed since its results were begun."""
    store: Path = Path("runs/store")
    """Folder of finished jobs, shared by all plans."""
    out: Path | None = None
    """Folder for records, summary and table; runs/bench/NAME if not given."""
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def bench(argv: list[str]) -> None:
    """``expunge bench PLAN``."""
    options = parse(Bench, argv, "expunge bench")
    from expunge.stages import bench as stage
    from expunge.stages.plan import read_plan

    plan = read_plan(options.plan)
    if options.dry_run:
        _dry_run(plan, options)
        return
    out = options.out or Path("runs/bench") / options.plan.stem
    with _live(options.talk) as show:
        rows = stage.run(plan, options.store, out, changed=options.changed, on_progress=show)
    options.talk.result({"folder": str(out), "summary": rows}, f"{stage.table(rows)}{out}: records.jsonl, table.md")


def _dry_run(plan: Any, options: Bench) -> None:
    """The jobs of a plan, whether they are done, and what the others should take."""
    from expunge.stages import bench as stage
    from expunge.stages import jobs
    from expunge.stages.plan import Planner, flattened

    planner = Planner(plan)
    measurements = planner.planned()
    todo = {p.key for p in stage.waiting(measurements, options.store)}
    rate = stage.speed(planner, options.store)
    rows = [
        {
            "key": p.key[:12],
            "room": p.job["room"],
            "what": _what(p.job),
            "done": jobs.result(p.job, options.store) is not None,
            "waiting": p.key in todo,
            "equivalents": p.cost.equivalents,
            "minutes": round(p.cost.equivalents / rate / 60, 2),
        }
        for p in flattened(measurements)
    ]
    left = [r for r in rows if r["waiting"]]
    total = {
        "jobs": len(rows),
        "waiting": len(left),
        "equivalents": sum(r["equivalents"] for r in left),
        "minutes": round(sum(r["minutes"] for r in left), 1),
    }
    alike: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for r in rows:
        state = "done" if r["done"] else "to do" if r["waiting"] else "not needed"
        alike.setdefault((r["room"], state, r["what"]), []).append(r)
    lines = [
        f"{len(found):>4} x {room:9} {state:10} {sum(r['equivalents'] for r in found):>10,} forwards "
        f"{sum(r['minutes'] for r in found):>7.1f} min  {what}"
        for (room, state, what), found in alike.items()
    ]
    lines.append(
        f"{total['waiting']} of {total['jobs']} jobs to do: {total['equivalents']:,} forward-equivalents, "
        f"about {total['minutes']:.0f} minutes"
    )
    options.talk.result({"rows": rows, "total": total}, "\n".join(lines))


def _what(job: Any) -> str:
    """A job in a few words."""
    if job["room"] in ("erase", "memory"):
        kept = f", retaining {len(job['retain'])}" if job["retain"] else ""
        return f"{job['eraser']} seed {job['seed']}{kept}: {', '.join(job['targets'])}"
    if job["room"] == "generate":
        about = f" with key ({job['control']})" if job["control"] else " edited" if job["edits"] else " original"
        return f"{len(job['prompts'])} prompts x {job['count']}{about}"
    return str(job["metric"])


@contextlib.contextmanager
def _live(talk: Talk) -> Iterator[Callable[[Any], None] | None]:
    """A live table of where a plan stands on a terminal, a line a job elsewhere, nothing if it would disturb."""
    if talk.quiet or talk.json:
        yield None
        return
    start = time.monotonic()

    def row(now: Any) -> list[str]:
        job = "finished" if now.job is None else f"{now.job.method} {now.job.split} {_what(now.job.job)}".strip()
        minutes = (time.monotonic() - start) / 60
        return [f"{now.done}/{now.total}", job, f"{now.equivalents_left:,}", f"{minutes:.1f}"]

    if not sys.stderr.isatty():

        def tell(now: Any) -> None:
            sys.stderr.write("{0} jobs, {2} forwards left, {3} min: {1}\n".format(*row(now)))

        yield tell
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    with Live(console=Console(stderr=True)) as live:

        def show(now: Any) -> None:
            drawn = Table("jobs", "now", "forwards left", "minutes")
            drawn.add_row(*row(now))
            live.update(drawn)

        yield show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clean:
    """Show what finished jobs take on disk, and free it."""

    room: UseAppendAction[tuple[Literal["erase", "memory", "generate", "measure", "leftovers"], ...]] = ()
    """What to delete: edits, counts of memory, images, measurements, or what killed runs left; repeat for several.

    Nothing if not given.
    """
    store: Path = Path("runs/store")
    """Folder of finished jobs."""
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def clean(argv: list[str]) -> None:
    """``expunge clean``."""
    options = parse(Clean, argv, "expunge clean")
    from expunge.stages import bench as stage

    freed = stage.clean(options.store, options.room) if options.room else 0
    left = stage.disk(options.store)
    lines = [f"{room:10} {r.jobs:>6} jobs {r.bytes / 1e6:>10.1f} MB" for room, r in left.items()]
    if options.room:
        lines.append(f"freed {freed / 1e6:.1f} MB")
    options.talk.result(
        {"freed_bytes": freed, "rooms": {room: r._asdict() for room, r in left.items()}},
        "\n".join(lines) or f"{options.store}: nothing",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model with its edits fused as a plain diffusers folder."""

    edit: Paths = ()
    """An edit.safetensors to fuse; repeat in order."""
    out: Path
    """Folder for the model."""
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
    edits = [load_edit(path) for path in options.edit]
    out = stage.to_folder(
        options.model.open(), edits, options.out, any_base=options.any_base, overwrite=options.overwrite
    )
    options.talk.result({"folder": str(out)}, f"{out}: load it with StableDiffusionPipeline.from_pretrained")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Show what an edit file holds and how it was made."""

    file: Positional[Path]
    """An edit.safetensors."""
    json: bool = False
    """Print one JSON object instead of text."""


def show(argv: list[str]) -> None:
    """``expunge show FILE``."""
    options = parse(Show, argv, "expunge show")
    from expunge.store import read_header

    header = read_header(options.file)
    made = header["provenance"] or {}
    rows = {"id": header["id"], "kind": header["kind"], **header["fields"], **made}
    Talk(json=options.json).result(header, "\n".join(f"{k:12} {v}" for k, v in rows.items()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List erasers, attacks, metrics, judges and concept sets."""

    families: bool = False
    """Show which erasers work on which model families instead."""
    json: bool = False
    """Print one JSON object instead of text."""


def list_(argv: list[str]) -> None:
    """``expunge list``."""
    options = parse(List, argv, "expunge list")
    from expunge.core.catalog import KINDS, Catalog

    if options.families:
        from expunge.stages.erase import families, families_table

        Talk(json=options.json).result(families(), families_table())
        return
    found = {kind: list(Catalog(kind).entries().values()) for kind in KINDS}
    sets = sorted(p.stem for p in (Path(__file__).parent / "testbed" / "concepts").glob("*.toml"))
    content: dict[str, Any] = {
        kind: [{"name": e.name, "class": e.class_name, "paper": e.paper, "arxiv": e.arxiv} for e in entries]
        for kind, entries in found.items()
    }
    lines: list[str] = []
    for kind, entries in found.items():
        lines.append(kind)
        lines += [f"  {e.name:18} {e.summary or '(cannot be used: ' + e.problem + ')'}" for e in entries] or [
            "  none yet"
        ]
    lines += ["concept sets", f"  {', '.join(sets)}"]
    Talk(json=options.json).result({**content, "concept_sets": sets}, "\n".join(lines))


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
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def demo(argv: list[str]) -> None:
    """``expunge demo``."""
    options = parse(Demo, argv, "expunge demo")
    from expunge.stages import demo as stage

    done = stage.run(options.target, options.out, options.count, options.overwrite, options.talk.tell)
    options.talk.result(
        {"folder": str(options.out), "records": [r.as_json() for r in done]}, stage.table(options.out, done)
    )


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "demo": ("erase a concept from the model in the box, and show it", demo),
    "erase": ("remove concepts: METHOD --target WORDS --out FOLDER", erase),
    "generate": ("make images with a model and its edits", generate),
    "measure": ("measure a folder of images: METRIC --images FOLDER", measure),
    "recover": ("give an erased model a concept back with its private key", recover),
    "bench": ("run a plan: a grid of methods, concepts and seeds", bench),
    "clean": ("show what finished jobs take on disk, and free it", clean),
    "export": ("write the edited model as a plain diffusers folder", export),
    "show": ("show what an edit file holds and how it was made", show),
    "list": ("list erasers, attacks, metrics, judges and concept sets", list_),
}


def parse(cls: Any, argv: list[str], prog: str) -> Any:
    """Parse ``argv`` into ``cls``; a mistake becomes one line.

    Raises:
        ExpungeError: with the parser's complaint, or "did you mean" for an unknown option.
    """
    if "--help" in argv or "-h" in argv:
        return tyro.cli(cls, args=argv, prog=prog)
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
        try:
            parsed, extra = tyro.cli(cls, args=argv, prog=prog, return_unknown_args=True, console_outputs=True)
        except SystemExit as stop:
            text = re.sub(r"\x1b\[[0-9;]*m|[^\x00-\x7f]|[+|]", " ", complaint.getvalue())
            text = re.sub(r"-{4,}", " ", text)
            line = " ".join(text.split()).split(" For full helptext")[0].split(" Argument helptext")[0]
            raise ExpungeError(f"{prog}: {line or 'bad options'} (see {prog} --help)") from stop
    if extra:
        known = _flags(cls)
        near = difflib.get_close_matches(extra[0], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"see {prog} --help"
        raise ExpungeError(f"{prog}: unknown option '{extra[0]}': {hint}")
    return parsed


def _flags(cls: Any) -> list[str]:
    """All option names of a dataclass of options, nested ones included."""
    found: list[str] = []
    for field in dataclasses.fields(cls):
        kind = getattr(field.type, "__origin__", field.type) if not isinstance(field.type, type) else field.type
        inner = getattr(field.type, "__args__", (kind,))[0] if not isinstance(field.type, type) else field.type
        if dataclasses.is_dataclass(inner):
            found += _flags(inner)
        else:
            found.append("--" + field.name.replace("_", "-"))
    return found


def usage() -> str:
    """The text of ``expunge --help``."""
    rows = "\n".join(f"  {name:10} {what}" for name, (what, _) in COMMANDS.items())
    return (
        "expunge removes concepts from text-to-image diffusion models, and shows what was removed and what was kept.\n\n"
        f"usage: expunge COMMAND [options]\n\ncommands:\n{rows}\n\nexpunge COMMAND --help lists a command's options."
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings():
        shown = warnings.showwarning
        warnings.showwarning = lambda message, category, *more, **named: (
            sys.stderr.write(f"expunge: warning: {message}\n")
            if issubclass(category, ExpungeWarning)
            else shown(message, category, *more, **named)
        )
        return _run(argv)


def _run(argv: list[str]) -> int:
    """One command, with its errors turned into exit codes."""
    try:
        if not argv or argv[0] in ("-h", "--help"):
            say(usage())
            return 0
        if argv[0] == "--version":
            from importlib.metadata import version

            say(f"expunge {version('expunge')}")
            return 0
        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], COMMANDS)
        COMMANDS[argv[0]][1](argv[1:])
    except ExpungeError as error:
        sys.stderr.write("expunge: " + " ".join(str(error).split()) + "\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("expunge: interrupted\n")
        return 130
    return 0


def entry() -> None:
    """What the ``expunge`` script runs."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if code == 130:
        # An interrupt that passed through an extension module's own exec() makes CPython end by the signal even when it
        # was handled; everything is written and closed by now, so leave at once with the code that was promised.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
