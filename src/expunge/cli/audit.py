"""`expunge audit`: whether an edited model has lost its targets, what brings them back, and what to do about it."""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from expunge.cli.bench import live
from expunge.cli.options import Model, Paths, Words, load_edits
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.edit import Edit
    from expunge.plans.audit import Asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """Measure a finished edit, attack it within a time, and write one report with a verdict; erases nothing."""

    target: Words
    """What should be gone, in words; repeat for several."""
    edit: Paths = ()
    """An edit.safetensors to audit, on the model that --model names; repeat in the order in which they are attached."""
    original: str | None = None
    """Without --edit: what the model that --model names was before it was edited."""
    budget: str = "10m"
    """Time for images and attacks, such as 1m, 10m or 1h. What was given up for it is said."""
    retain: Words = ()
    """A concept that should have stayed; repeat for several. Chosen if not given."""
    judge: str | None = None
    """Who tells what images show; the testbed's own on the testbed."""
    oracle: str | None = None
    """Another judge, that attacks may ask; the testbed's judge B on the testbed."""
    attack: Words = ()
    """An attack to run; repeat for several. All that fit the model, the access and the time if not given."""
    access: Literal["queries", "text encoder", "white box"] = "white box"
    """What an attacker is thought to hold; attacks that need more are left out."""
    metric: Words = ()
    """A further metric, such as lpips; repeat for several."""
    workers: int | None = None
    """Jobs at a time, as for `expunge bench`."""
    store: Path = Path("runs/store")
    """Folder of finished jobs, shared with plans: started again, an audit goes on where it was."""
    out: Path | None = None
    """Folder for plan, records and report.html; runs/audit/TARGET-EDIT if not given."""
    images: int = 4
    """Images of each concept in the report."""
    overwrite: bool = False
    """Replace another audit in the folder."""
    model: Model = dataclasses.field(default_factory=Model)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


class Audited(NamedTuple):
    """What an audit gave."""

    content: dict[str, Any]
    text: str


def audit(argv: list[str]) -> None:
    """``expunge audit``."""
    options = parse(Audit, argv, "expunge audit")
    done = audited(options)
    options.reporting.result(done.content, done.text)


def audited(options: Audit) -> Audited:
    """Plan the audit or take its plan up again, run it, and report; its folder is kept for it all the while."""
    _check(options)
    with contextlib.ExitStack() as kept:
        return _reported(options, *_planned(options, kept))


def _reported(options: Audit, asked: "Asked", out: Path) -> Audited:
    """Run the plan in ``out``, and report."""
    from expunge.executors import bench
    from expunge.plans.read import read_plan
    from expunge.report import page
    from expunge.report.reading import read
    from expunge.results.files import AUDIT, RECORDS, REPORT, SUMMARY
    from expunge.results.verdict import verdict
    from expunge.store import read_json, read_lines, write_json

    with live(options.reporting) as show:
        how: dict[str, Any] = {"workers": options.workers, "device": options.model.device, "changed": True}
        bench.run(read_plan(out / "plan.toml"), options.store, out, **how, on_progress=show)
    said = verdict(read_lines(out / SUMMARY), read_lines(out / RECORDS), asked.row, asked.targets)
    content = {**read_json(out / AUDIT), "verdict": said.as_json()}
    write_json(out / AUDIT, content, overwrite=True)
    report = out / REPORT
    page.write(read(out, options.store), report, options.images, overwrite=True)
    left_out = [f"Not run: {name}, since {why}" for name, why in content["left_out"].items()]
    lowered = {name: tier["given_up"] for name, tier in content["tiers"].items() if tier["given_up"]}
    given_up = [f"Given up of {name}: {_lowered(pairs)}." for name, pairs in lowered.items()]
    lines = [said.headline, said.advice, *said.lines, *given_up, *left_out, f"see {report}"]
    return Audited({"report": str(report), **content}, "\n".join(lines))


def _lowered(given_up: dict[str, list[int]]) -> str:
    """What was given up of an attack, in words."""
    return ", ".join(f"{name} {own:,} -> {now:,}" for name, (own, now) in given_up.items()) or "nothing"


def _check(options: Audit) -> None:
    """Refuse, before anything is opened, what cannot come to a report."""
    check_report(options.budget)
    check_model(options.model)
    if options.edit and options.original:
        raise ExpungeError("audit with --edit and --original: expected --model to name what the edit was made on")
    if not options.edit and options.original is None:
        raise ExpungeError(
            f"audit of model '{options.model.model}' with nothing to compare with: expected --edit FILE, or --original with "
            "what the model was before it was edited"
        )


def check_model(model: Model) -> None:
    """Refuse what only the command line says of a model: an audit's jobs open it by its name alone."""
    if model.revision is not None or model.model_layout is not None:
        raise ExpungeError(
            "an audit with --revision or --model-layout, which its jobs would not know: expected a model's folder"
        )


def check_report(budget: str) -> None:
    """Refuse a budget that is no time, and a report that could not be drawn in the end."""
    from importlib.util import find_spec

    from expunge.stages.tiers import seconds_of

    seconds_of(budget)
    lacking = next((name for name in ("jinja2", "matplotlib") if find_spec(name) is None), None)
    if lacking:
        raise ExpungeError(f"an audit's report needs {lacking}: expected `pip install 'expunge[report]'`")


def _planned(options: Audit, kept: contextlib.ExitStack) -> "tuple[Asked, Path]":
    """What is asked, and the folder that holds its plan: a new one, or that of an audit which was the same.

    The folder is claimed for as long as ``kept`` is open.
    """
    from expunge.plans import audit as plans
    from expunge.results import summary
    from expunge.results.files import AUDIT, REPORT
    from expunge.store import FORMAT, new_file, read_json, reserved, write_json
    from expunge.store.toml import toml

    backbone, edits, imported = _opened(options)
    out = options.out or Path("runs/audit") / f"{'-'.join(options.target)}-{edits[-1].id[:8]}".replace(" ", "-")
    asked = _asked(options, backbone, edits, out)
    kept.enter_context(reserved(out, overwrite=True))
    file = out / AUDIT
    if not file.is_file() and out.is_dir() and any(out.iterdir()):
        raise ExpungeError(f"'{out}' holds something else than an audit: expected an empty folder, or another --out")
    if file.is_file() and not options.overwrite:
        begun = read_json(file)
        if begun.get("asked") != asked.as_json():
            raise ExpungeError(f"'{out}' holds another audit: expected the same, another --out, or --overwrite")
        if "tiers" in begun:  # else it ended before its plan was whole
            return asked, out
    plan = plans.planned(asked, backbone, edits, out / "set.toml")
    for name, tier in plan.tiers.items():
        options.reporting.announce(f"{name}: given up {_lowered(tier['given_up'])} (about {tier['seconds']:.0f} s)")
    for name, why in plan.left_out.items():
        options.reporting.announce(f"{name} is left out: {why}")
    about = {"format": FORMAT, "asked": asked.as_json()}
    summary.forget(out)  # of an audit that this one replaces, with its page
    (out / REPORT).unlink(missing_ok=True)
    write_json(file, about, overwrite=True)  # first, so that a folder is known if this ends before its plan is whole
    if imported:
        edits[0].save(out / "edit.safetensors", overwrite=True)
    for name, content in (("set.toml", plan.set), ("plan.toml", plan.plan)):
        with new_file(out / name, overwrite=True) as temporary:
            temporary.write_text(toml(content), encoding="utf-8")
    write_json(file, {**about, "tiers": plan.tiers, "left_out": plan.left_out}, overwrite=True)
    return asked, out


def _opened(options: Audit) -> "tuple[Backbone, list[Edit], bool]":
    """The original, the edits that are audited, and whether they are a whole model's difference from it."""
    from expunge.stages import importing

    if options.edit:
        edits = load_edits(options.edit)
        private = next((str(path) for path, edit in zip(options.edit, edits, strict=True) if edit.private), None)
        if private is not None:
            raise ExpungeError(f"'{private}' is a private key: expected an edit, which is what is published")
        return options.model.open(), edits, False
    backbone = dataclasses.replace(options.model, model=options.original or "").open()
    return backbone, [importing.of_model(backbone, options.model.open(), options.target)], True


def _asked(options: Audit, backbone: "Backbone", edits: "list[Edit]", out: Path) -> "Asked":
    """What is asked, with what was left open filled in."""
    from expunge.plans.audit import Asked
    from expunge.stages.check import ORACLES

    judge = options.judge or ("testbed" if backbone.kind == "testbed" else None)
    if judge is None:
        raise ExpungeError("no judge is named for this audit: expected one that tells what its images show (--judge)")
    origin = edits[-1].provenance
    return Asked(
        row=origin.eraser if origin is not None else "edited",
        edits=[str(path) for path in options.edit] or [str(out / "edit.safetensors")],
        ids=[edit.id for edit in edits],
        model=options.original or options.model.model,
        targets=options.target,
        retain=options.retain,
        judge=judge,
        oracle=options.oracle or ORACLES.get(backbone.kind),
        budget=options.budget,
        attacks=options.attack,
        access=options.access,
        metrics=options.metric,
        dtype=options.model.dtype,
    )
