"""The commands about plans: bench and clean."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from expunge.cli.parsing import Positional, Repeated, parse
from expunge.cli.progress import duration, lines
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Run a plan: a grid of methods, concepts and seeds. Started again, it goes on where it was."""

    plan: Positional[Path]
    """A TOML plan; see docs/plans.md."""
    model: str | None = None
    """Another model than the plan's: hub id, folder or .safetensors file. For one of another kind the plan must have a table
    for it, `[on.sd]`, with a set and a judge that fit."""
    dry_run: bool = False
    """List the jobs, alike ones together, with the evaluations and the time they should take, and run none."""
    changed: bool = False
    """Accept that the plan's text has changed since its results were begun."""
    results: Path | None = None
    """Run nothing: judge the plan's claims and draw its figures from results that were kept, as benchmarks/ has them.
    A difference that they do not have is 'not measured'."""
    store: Path = Path("runs/store")
    """Folder of finished jobs, shared by all plans."""
    out: Path | None = None
    """Folder for records, summary and table; runs/bench/NAME (NAME-again with --results) if not given."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def bench(argv: list[str]) -> None:
    """``expunge bench PLAN``."""
    options = parse(Bench, argv, "expunge bench")
    from expunge.stages import bench as stage
    from expunge.stages import summary
    from expunge.stages.plan import read_plan

    plan = read_plan(options.plan, options.model)
    if options.dry_run and options.results is not None:
        raise ExpungeError("bench with --dry-run and --results: expected one of them, as neither runs anything")
    if options.dry_run:
        _dry_run(plan, options)
        return
    kind = "" if options.model is None else f"-{Path(options.model).name}"
    again = "" if options.results is None else "-again"
    out = options.out or Path("runs/bench") / f"{options.plan.stem}{kind}{again}"
    if options.results is not None:
        rows = stage.retold(plan, options.results, out)
        options.reporting.result({"folder": str(out), "summary": rows}, f"{summary.table(rows)}{out}: table.md")
        return
    with _live(options.reporting) as show:
        rows = stage.run(plan, options.store, out, changed=options.changed, on_progress=show)
    options.reporting.result(
        {"folder": str(out), "summary": rows}, f"{summary.table(rows)}{out}: records.jsonl, table.md"
    )


def _dry_run(plan: Any, options: Bench) -> None:
    """The jobs of a plan, whether they are done, and what the others should take."""
    from expunge.stages import bench as stage
    from expunge.stages import jobs
    from expunge.stages.planner import Planner, flattened

    planner = Planner(plan)
    measurements = planner.planned()
    todo = {p.key for p in stage.waiting(measurements, options.store)}
    pace = stage.pace(planner, options.store)
    rows = [
        {
            "key": p.key[:12],
            "room": p.job["room"],
            "what": _what(p.job),
            "done": jobs.result(p.job, options.store) is not None,
            "waiting": p.key in todo,
            "equivalents": p.cost.equivalents,
            "minutes": round(pace.seconds(p.job, p.cost.equivalents) / 60, 3),
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
        f"{len(found):>4} x {room:9} {state:10} {sum(r['equivalents'] for r in found):>10,} forward-equivalents "
        f"{duration(60 * sum(r['minutes'] for r in found)):>11}  {what}"
        for (room, state, what), found in alike.items()
    ]
    lines.append(
        f"{total['waiting']} of {total['jobs']} jobs to do: {total['equivalents']:,} forward-equivalents, "
        f"about {duration(60 * total['minutes'])}"
    )
    options.reporting.result({"rows": rows, "total": total}, "\n".join(lines))


def _what(job: Any) -> str:
    """A job in a few words."""
    if job["room"] in ("erase", "memory"):
        kept = f", retaining {len(job['retain'])}" if job["retain"] else ""
        kept += f", on {len(job['on'])} edits" if job.get("on") else ""
        return f"{job['eraser']} seed {job['seed']}{kept}: {', '.join(job['targets'])}"
    if job["room"] == "relearn":
        return f"a fresh key by {job['eraser']} seed {job['seed']}: {', '.join(job['targets'])}"
    if job["room"] == "generate":
        about = f" with key ({job['control']})" if job["control"] else " edited" if job["edits"] else " original"
        return f"{len(job['prompts'])} prompts x {job['count']}{about}"
    if job["room"] == "attack":
        return f"{job['attack']} on {'edited' if job['edits'] else 'original'}: {', '.join(job['targets'])}"
    if job["room"] == "pairs":
        wish = job["pairs"]
        return f"{wish['count'] * len(wish['unsafe'])} pairs of {wish['target'] or 'what nobody looks for'}"
    return str(job["analysis"] if job["room"] == "analyse" else job["metric"])


@contextlib.contextmanager
def _live(reporting: Reporting) -> Iterator[Callable[[Any], None] | None]:
    """Where a plan stands: a live table on a terminal, a line every half minute elsewhere, nothing if it would disturb."""
    if reporting.quiet or reporting.json:
        yield None
        return
    stand = _Stand()
    if not sys.stderr.isatty():
        with lines(lambda: "{0} jobs, {2} so far, {3}: {1}".format(*stand.row())):
            yield stand.at
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def drawn() -> Table:
        table = Table("jobs", "now", "so far", "left")
        table.add_row(*stand.row())
        return table

    with Live(console=Console(stderr=True), get_renderable=drawn, refresh_per_second=1):
        yield stand.at


class _Stand:
    """Where a plan stands, told at any moment of a job."""

    def __init__(self) -> None:
        self._start = self._begun = time.monotonic()
        self._now: Any = None

    def at(self, now: Any) -> None:
        """A job begins."""
        self._now, self._begun = now, time.monotonic()

    def row(self) -> list[str]:
        """Jobs done of how many, the one that runs, the time spent and what is left of it."""
        now, time_now = self._now, time.monotonic()
        spent = duration(time_now - self._start)
        if now is None:
            return ["0", "planning", spent, "nobody knows how long"]
        job = "finished" if now.job is None else f"{now.job.method} {now.job.split} {_what(now.job.job)}".strip()
        left = now.seconds_left - min(time_now - self._begun, now.job_seconds)
        return [f"{now.done}/{now.total}", job, spent, f"about {duration(left)} left"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clean:
    """Show what finished jobs take on disk, and free it."""

    room: Repeated[
        tuple[
            Literal["pairs", "erase", "memory", "attack", "relearn", "generate", "measure", "analyse", "leftovers"], ...
        ]
    ] = ()
    """What to delete: pairs, edits, counts of memory, attacks, fresh keys, images, measurements, analyses, or leftovers of
    killed runs.

    Repeat for several.

    Nothing if not given.
    """
    store: Path = Path("runs/store")
    """Folder of finished jobs."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def clean(argv: list[str]) -> None:
    """``expunge clean``."""
    options = parse(Clean, argv, "expunge clean")
    from expunge.stages import bench as stage

    freed = stage.clean(options.store, options.room) if options.room else 0
    left = stage.disk(options.store)
    lines = [f"{room:10} {r.jobs:>6} jobs {r.bytes / 1e6:>10.1f} MB" for room, r in left.items()]
    if options.room:
        lines.append(f"freed {freed / 1e6:.1f} MB")
    options.reporting.result(
        {"freed_bytes": freed, "rooms": {room: r._asdict() for room, r in left.items()}},
        "\n".join(lines) or f"{options.store}: nothing",
    )
