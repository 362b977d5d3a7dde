"""`expunge submit FOLDER`: results of a committed plan, checked before they are sent."""

import dataclasses
from pathlib import Path

from expunge.cli.parsing import Positional, parse
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submit:
    """Check results of a committed plan before they are sent to somebody: same plan, same model, whole provenance, one summary.

    Nothing is sent. What the check can show, and what it cannot, stands in docs/submissions.md.
    """

    folder: Positional[Path]
    """A folder of results that bench wrote, runs/bench/NAME."""
    against: Path = Path("benchmarks")
    """Folder of committed plans."""
    plan: str | None = None
    """Name of the committed plan that is meant; the folder's name, or else the plan that fits, if not given."""
    out: Path | None = None
    """Folder that gets NAME.jsonl and NAME.md to be sent, and NAME.toml if anything was added to the plan."""
    store: Path | None = None
    """Folder of finished jobs that the results were made in: all is told again from the values behind each number."""
    rerun: int = 0
    """With --store: make the images of so many measurements again, drawn by chance, and measure them."""
    overwrite: bool = False
    """Replace earlier files in --out."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def submit(argv: list[str]) -> None:
    """``expunge submit FOLDER``."""
    options = parse(Submit, argv, "expunge submit")
    if options.rerun < 0 or (options.rerun and options.store is None):
        raise ExpungeError(f"--rerun {options.rerun}: expected 1 or more, and --store with the jobs that it stands on")
    from expunge.executors import rerun, submission

    found = submission.check(options.folder, options.against, options.plan)
    lines = list(found.in_words())
    if options.store is not None:
        rerun.told_from_store(found, options.store)
        lines.append("records and summary are told again from the store, bit for bit")
    if options.store is not None and options.rerun:
        for one in rerun.run_again(found, options.store, options.rerun):
            says = (
                "the same numbers, bit for bit" if one.same else f"{one.apart:.2f} apart at most, within the intervals"
            )
            lines.append(f"run again: {one.what}: {says}")
    files = [] if options.out is None else submission.write(found, options.out, options.overwrite)
    sent = ", ".join(map(str, files)) or "--out FOLDER writes the files"
    lines.append(f"to be sent: {sent}")
    content = {
        "plan": found.of.name,
        "added": list(found.of.added),
        "more": list(found.of.more),
        "compared": list(found.of.compared),
    }
    options.reporting.result({**content, "found": lines, "files": list(map(str, files))}, "\n".join(lines))
