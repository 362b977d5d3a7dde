"""`expunge demo`: the whole way on the model in the box."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.cli import startup
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.cli.audit import Audited


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
    """Go on with what a killed, interrupted or finished demo left, if it was the same."""
    audit: bool = False
    """Audit the edit in the end, as `expunge audit` does, and link its report."""
    audit_budget: str = "3m"
    """Time for that audit: of the few in which each question gets its least images."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def demo(argv: list[str]) -> None:
    """``expunge demo``."""
    options = parse(Demo, argv, "expunge demo")
    if options.audit:
        from expunge.cli.audit import check_report

        check_report(options.audit_budget)
    startup.import_model_classes()
    from expunge.stages import demo as stage

    begun = ["loading the testbed"]

    def begins(line: str) -> None:
        begun.append(line)
        options.reporting.announce(line)

    how = {"overwrite": options.overwrite, "tell": begins, "resume": options.resume}
    with options.reporting.progress(lambda: begun[-1]):
        records = stage.run(options.target, options.out, options.count, **how)
    content = {"folder": str(options.out), "records": [r.as_json() for r in records]}
    text = stage.table(options.out, records)
    if options.audit:
        try:
            audit = audit_of(options)
        except ExpungeError:  # such as too little time on this machine: the demo itself is done
            options.reporting.result(content, text)
            raise
        content["audit"], text = audit.content, f"{text}\n{audit.text}"
    else:
        text += f"\naudit this edit (about {options.audit_budget} more): {again(options)}"
    options.reporting.result(content, text)


def audit_of(options: Demo) -> "Audited":
    """The audit of a demo's edit, into ``audit/`` beside it: gone on with, if it was of this edit and time."""
    from expunge.cli.audit import Audit, audited
    from expunge.results.files import AUDIT
    from expunge.store import EDIT, read_header, read_json

    edit, out = options.out / EDIT, options.out / "audit"
    earlier = read_json(out / AUDIT) if (out / AUDIT).is_file() else {}
    asked = earlier.get("asked", {})
    same = (asked.get("ids"), asked.get("budget")) == ([read_header(edit)["id"]], options.audit_budget)
    again = same and options.resume
    how = {"out": out, "budget": options.audit_budget, "overwrite": not again, "reporting": options.reporting}
    return audited(Audit(target=(options.target,), edit=(edit,), **how))


def again(options: Demo) -> str:
    """The command that audits what a demo left."""
    own, words = Demo(), ["expunge", "demo", "--resume", "--audit"]
    for name in ("target", "out", "count", "audit_budget"):
        value = getattr(options, name)
        words += [f"--{name.replace('_', '-')}", str(value)] if value != getattr(own, name) else []
    return shlex.join(words)
