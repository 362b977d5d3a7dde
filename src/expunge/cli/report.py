"""`expunge report RUN`: a run as one HTML file, or a folder of plans as a leaderboard."""

import dataclasses
from pathlib import Path

from expunge.cli.options import Words
from expunge.cli.parsing import Positional, parse
from expunge.cli.reporting import Reporting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Show a run as one HTML file that needs nothing else: images before and after, numbers, and what they do not show.

    A folder of plans with their kept results (benchmarks/) becomes a leaderboard: methods x claims x cost.
    """

    run: Positional[Path]
    """A folder that bench or demo wrote, or one that holds what erase, generate and measure wrote; or a folder of plans."""
    out: Path | None = None
    """The .html file; report.html in the run's folder if not given."""
    store: Path = Path("runs/store")
    """Folder of finished jobs, where a plan's images are."""
    images: int = 8
    """Images of each concept and method."""
    blur: Words = ()
    """A word whose images are covered until they are asked for, beside the unsafe ones; repeat for several."""
    overwrite: bool = False
    """Replace an earlier file."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def report(argv: list[str]) -> None:
    """``expunge report RUN``."""
    options = parse(Report, argv, "expunge report")
    from expunge.report import of_benchmarks, page
    from expunge.report.reading import read
    from expunge.results.files import REPORT
    from expunge.store import check_new

    out = options.out or options.run / REPORT
    if of_benchmarks.holds_plans(options.run):
        _leaderboard(options, out)
        return
    run = read(options.run, options.store)
    check_new(out, options.overwrite)
    page.write(run, out, options.images, options.blur, options.overwrite)
    size = out.stat().st_size
    content = {"report": str(out), "bytes": size, "image_folders": len(run.sides), "image_folders_gone": run.gone}
    gone = f", {run.gone} image folders are gone" if run.gone else ""
    options.reporting.result(content, f"{out}: {size / 1e6:.1f} MB{gone}")


def _leaderboard(options: Report, out: Path) -> None:
    """A folder of plans; which results are of today's plans takes the plans themselves, and so torch."""
    from expunge.executors.asked import answered_in, unopened_in
    from expunge.report import leaderboard, of_benchmarks
    from expunge.store import check_new

    check_new(out, options.overwrite)
    kept = of_benchmarks.read(options.run)  # first: what is damaged is said before the plans are opened
    plans = of_benchmarks.with_answers(kept, answered_in(options.run), unopened_in(options.run))
    states = leaderboard.write(plans, out, options.overwrite)
    content = {"report": str(out), "bytes": out.stat().st_size, "plans": dict(states)}
    text = ", ".join(f"{count} {state}" for state, count in states.items())
    options.reporting.result(content, f"{out}: {out.stat().st_size / 1e6:.1f} MB, {len(plans)} plans: {text}")
