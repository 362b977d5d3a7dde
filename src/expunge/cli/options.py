"""What commands share: options, how they are parsed, and how results are told."""

import contextlib
import dataclasses
import difflib
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from expunge.cli.progress import bar, told
from expunge.core.errors import ExpungeError, check_finite

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.concept import Part
    from expunge.core.edit import Edit
    from expunge.core.query import Query
    from expunge.core.record import Record
    from expunge.stages.filters import Filter

Words = UseAppendAction[tuple[str, ...]]
Paths = UseAppendAction[tuple[Path, ...]]
Numbers = UseAppendAction[tuple[float, ...]]


def strength_of(given: Sequence[float]) -> float | Sequence[float]:
    """What edits are attached with: as made if nothing is given, one number for all, or one for each."""
    return 1.0 if not given else given[0] if len(given) == 1 else given


def say(text: str) -> None:
    """A line of result on standard output."""
    sys.stdout.write(text + "\n")


def in_effect(preset: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    """What of a preset stands in a plug-in's settings: options go over it."""
    now = json.loads(json.dumps(dataclasses.asdict(settings)))
    whole = {name: {**now[name], **v} if isinstance(v, Mapping) else v for name, v in preset.items()}
    return {name: preset[name] for name, value in whole.items() if now[name] == value}


def told_settings(settings: Mapping[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def told_record(record: "Record") -> str:
    """A record in a line."""
    limits = f"[{record.low:.1f}, {record.high:.1f}]"
    return f"{record.metric:28} {record.value:6.1f} {record.unit} {limits}  n = {record.n}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Which model, and how to run it."""

    model: str = "testbed"
    """`testbed`, a local diffusers folder, a single .safetensors file (LDM layout), or a hub id."""
    model_layout: str | None = None
    """How a single file is read: sd1, sd2 (v-prediction), sd2-base, sdxl, or a diffusers folder of its kind."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:0`, `mps` (GPU untested)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the weights while they run."""

    checkpointing: bool = False
    """Train in less memory: compute activations again on the way back."""

    def open(self) -> "Backbone":
        """Load the model."""
        from expunge import backbones

        place = {"device": self.device, "dtype": self.dtype, "revision": self.revision}
        backbone = backbones.load(self.model, **place, layout=self.model_layout)
        backbone.checkpointing = self.checkpointing
        return backbone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Talk:
    """How to report."""

    json: bool = False
    """Print one JSON object instead of text."""
    quiet: bool = False
    """Print nothing but errors and warnings."""

    def result(self, content: dict[str, Any], text: str) -> None:
        """Print a result in the form asked for."""
        if self.json:
            try:
                say(json.dumps(content, sort_keys=True, allow_nan=False))
            except ValueError as error:
                raise ExpungeError("a number of the result is NaN or infinite, which JSON has not") from error
        elif not self.quiet:
            say(text)

    def tell(self, line: str) -> None:
        """Say on standard error what begins, unless it would disturb."""
        if not (self.quiet or self.json):
            sys.stderr.write(f"{line}\n")

    def progress(
        self, title: str, total: int, unit: str, counted: Callable[[], int] | None = None
    ) -> contextlib.AbstractContextManager[Callable[[int], None] | None]:
        """Progress on standard error, unless it would disturb: a bar on a terminal, a line every half minute elsewhere.

        ``total`` units are still to be done (0: nobody knows how many). The function given is told how many more are, unless
        ``counted`` says how many are in all.
        """
        if self.quiet or self.json:
            return contextlib.nullcontext()
        return bar(title, total, counted) if sys.stderr.isatty() else told(title, total, unit, counted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """A prompt file of a paper: one image a row, at the row's own seed."""

    prompts: Path | None = None
    """A CSV with the columns prompt, evaluation_seed (or sd_seed), and perhaps class or artist, which become labels; or a .txt
    of one prompt a line."""
    label: str | None = None
    """What every row of the CSV asks for, in the place of its class or artist: nudity for I2P."""
    row_guidance: bool = False
    """Take guidance from the CSV's rows (evaluation_guidance or sd_guidance_scale), not one scale for all."""
    column: Words = ()
    """What a column of the CSV is: prompt=NAME, label=NAME, seed=NAME or guidance=NAME; repeat for several. A label column of 0
    and 1 labels the rows with a 1 by its name, or by --label."""
    seed_from: int | None = None
    """Seed of the first row, for a file without seeds; each further row has the next one."""

    def queries(self, guidance: float, steps: int) -> "list[Query]":
        """A query for each row; none without a file."""
        from expunge.store import read_prompts

        if self.prompts is None:
            if self != Rows():
                raise ExpungeError(
                    "--label or --row-guidance without --prompts: expected a CSV of prompts, as for --column and --seed-from"
                )
            return []
        columns: dict[str, str] = {}
        for given in self.column:
            role, equals, name = given.partition("=")
            if not (equals and name.strip()) or role in columns:
                raise ExpungeError(f"--column '{given}': expected ROLE=NAME, as in prompt=text, once for each role")
            columns[role] = name
        return read_prompts(
            self.prompts, guidance, steps, self.label, self.row_guidance, columns=columns, seed_from=self.seed_from
        )


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
    resume: bool = False
    """Go on with the batches of images that a killed or interrupted run of the same command left, if there are any."""
    model: OmitArgPrefixes[Model] = dataclasses.field(default_factory=Model)
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)

    def asked(
        self,
        backbone: "Backbone",
        prompts: Words = (),
        concepts: Words = (),
        part: "Part | None" = None,
        rows: Rows | None = None,
    ) -> "list[Query]":
        """Queries for prompts, for concepts in the model's own template, for a part of a concept set, for a CSV's rows."""
        from expunge.core.query import queries
        from expunge.settings import presets
        from expunge.stages import generate as stage

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
        return queries(wanted, self.count, first, guidance, steps) + (rows.queries(guidance, steps) if rows else [])

    def make(self, backbone: "Backbone", edits: "list[Edit]", queries: "list[Query]", title: str, **how: Any) -> None:
        """Generate into the folder, with a progress bar; ``how`` goes to the stage."""
        from expunge.stages import generate as stage

        with self.talk.progress(title, len(queries), "images") as advance:
            made = {"batch": self.batch, "overwrite": self.overwrite, "resume": self.resume, "on_batch": advance}
            stage.to_folder(backbone, edits, queries, self.out, **made, **how)
        self.talk.result({"folder": str(self.out), "images": len(queries)}, f"{self.out}: {len(queries)} images")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hold:
    """What is held back: prompts by their words, images by what a judge sees in them."""

    hold_word: Words = ()
    """A word or phrase that a prompt must not name; repeat for several."""
    hold_concept: Words = ()
    """A concept that an image must not show; repeat for several."""
    hold_judge: str = "testbed"
    """Who looks: a judge, with settings as in testbed:network=b."""
    hold_threshold: float = 0.5
    """From which confidence on an image is held back, 0 to 1."""
    hold_action: Literal["black", "blur"] = "black"
    """What is shown instead of an image."""

    def filter(self) -> "Filter | None":
        """The filter, if there is anything to find."""
        if not (self.hold_word or self.hold_concept):
            return None
        from expunge.stages.filters import Filter

        return Filter(
            words=self.hold_word,
            concepts=self.hold_concept,
            judge=self.hold_judge,
            threshold=self.hold_threshold,
            action=self.hold_action,
        )


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
    _check_numbers(prog, parsed)
    return parsed


def _check_numbers(prog: str, options: Any) -> None:
    """Refuse NaN, infinity and whole numbers of more than 64 bits, in a plug-in's settings too."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            _check_numbers(prog, value)
        else:
            check_finite(f"{prog}: --{field.name.replace('_', '-')}", value)


def parse_with(settings: Any, name: str, options: type, argv: list[str], prog: str) -> Any:
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


def lenient(cls: type, argv: list[str]) -> Any:
    """Parse what belongs to ``cls``, whatever else there is; its defaults if that fails."""
    if "--help" in argv or "-h" in argv:
        argv = [a for a in argv if a not in ("--help", "-h")]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return tyro.cli(cls, args=argv, return_unknown_args=True, add_help=False)[0]
        except SystemExit:
            return cls()


def kind_asked(argv: list[str]) -> str:
    """The kind of the model that a command names, before the rest of it can be parsed."""
    from expunge import backbones

    asked = lenient(Model, argv)
    return backbones.kind_of(asked.model, asked.revision)


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
