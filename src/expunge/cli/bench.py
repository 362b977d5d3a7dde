"""`expunge bench`: run a plan."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.cli.parsing import Positional, parse
from expunge.cli.progress import lines
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError
from expunge.core.times import duration

if TYPE_CHECKING:
    from expunge.executors.progress import Progress
    from expunge.plans.schema import Plan

STORE = Path("runs/store")
"""Where finished jobs are, if nobody says where."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Run a plan: a grid of methods, concepts and seeds. Started again, it goes on where it was."""

    plan: Positional[Path]
    """A TOML plan; see docs/plans.md."""
    model: str | None = None
    """Another model than the plan's: hub id, folder or .safetensors file. For one of another kind the plan must have a table
    for it, `[on.sd]`, with a set and a judge that fit."""
    workers: int | None = None
    """Jobs at a time, each in a process of one thread: as many as there are cores if not given, and one on a GPU. With 1 they
    are done one after another in this process, with torch's own threads."""
    device: str | None = None
    """Where models run: `cpu` (if not given), `cuda`, `cuda:0`, `mps` (GPU untested). Finished jobs count whatever device made
    them."""
    ray: str | None = None
    """Run the jobs on a Ray cluster (expunge[ray]): `local` begins one on this machine, HOST:PORT is the head of one that this
    machine is in, `auto` looks for it. --workers is then the most jobs at a time. See docs/cluster.md."""
    shared: str | None = None
    """With --ray, the store that its machines share, as a URL: `s3://bucket/path` (expunge[s3]). --store is then this machine's
    copy. If not given, --store is a folder that all of them mount."""
    dry_run: bool = False
    """List the jobs, alike ones together, with the evaluations and the time they should take in a row, and run none."""
    changed: bool = False
    """Accept that the plan's text has changed since its results were begun."""
    results: Path | None = None
    """Run nothing: judge the plan's claims and draw its figures from results that were kept, as benchmarks/ has them.
    A difference that they do not have is 'not measured'."""
    store: Path | None = None
    """Folder of finished jobs, shared by all plans; runs/store if not given."""
    out: Path | None = None
    """Folder for records, summary and table; runs/bench/NAME (NAME-again with --results) if not given."""
    watched: bool = False
    """Write into the folder of results where the run stands and where its images are, for another program to look on."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)

    def given(self) -> dict[str, Any]:
        """How jobs are run: of these options, what was given."""
        names = ("workers", "device", "ray", "shared", "changed", "store", "watched")
        return {name: value for name in names if (value := getattr(self, name)) is not None and value is not False}


def bench(argv: list[str]) -> None:
    """``expunge bench PLAN``."""
    options = parse(Bench, argv, "expunge bench")
    from expunge.executors import bench as runner
    from expunge.plans.read import read_plan
    from expunge.results import markdown

    plan = read_plan(options.plan, options.model)
    if options.dry_run and options.results is not None:
        raise ExpungeError("bench with --dry-run and --results: expected one of them, as neither runs anything")
    if options.results is not None and options.given():
        more = " and ".join(f"--{name}" for name in options.given())
        raise ExpungeError(f"bench with --results and {more}: expected one of them, as --results runs nothing")
    if options.dry_run:
        _dry_run(plan, options)
        return
    kind = "" if options.model is None else f"-{Path(options.model).name}"
    again = "" if options.results is None else "-again"
    out = options.out or Path("runs/bench") / f"{options.plan.stem}{kind}{again}"
    if options.results is not None:
        rows = runner.again(plan, options.results, out)
        written = "table.md"
    else:
        how: dict[str, Any] = {"workers": None, "store": STORE, **options.given()}
        with live(options.reporting) as show:
            rows = runner.run(plan, out=out, **how, on_progress=show)
        written = "records.jsonl, table.md"
    options.reporting.result({"folder": str(out), "summary": rows}, f"{markdown.text(rows)}{out}: {written}")


def _dry_run(plan: "Plan", options: Bench) -> None:
    """The jobs of a plan, whether they are done, and what the others should take."""
    from expunge.executors import bench as runner
    from expunge.jobs import Workspace, in_order
    from expunge.plans.check import checked
    from expunge.plans.expand import expanded

    at = Workspace(store=options.store or STORE, device=options.device or "cpu")
    read = checked(plan)
    measurements = expanded(read, at.device)
    todo = {job.key for job in runner.waiting(measurements, at)}
    pace = runner.plan_pace(plan, read.image_dtype, at)
    rows = [
        {
            "key": job.key[:12],
            "room": job.room,
            "what": job.describe(),
            "done": job.result(at) is not None,
            "waiting": job.key in todo,
            "equivalents": job.cost.equivalents,
            "minutes": round(pace.seconds(job, job.cost.equivalents) / 60, 3),
        }
        for job in in_order(m.job for m in measurements)
    ]
    left = [r for r in rows if r["waiting"]]
    total = {
        "jobs": len(rows),
        "waiting": len(left),
        "equivalents": sum(r["equivalents"] for r in left),
        "minutes": round(sum(r["minutes"] for r in left), 1),
    }
    shown = [
        *_alike(rows),
        f"{total['waiting']} of {total['jobs']} jobs to do: {total['equivalents']:,} forward-equivalents, "
        f"about {duration(60 * total['minutes'])}",
    ]
    options.reporting.result({"rows": rows, "total": total}, "\n".join(shown))


def _alike(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each kind of job in each state."""
    alike: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for r in rows:
        state = "done" if r["done"] else "to do" if r["waiting"] else "not needed"
        alike.setdefault((r["room"], state, r["what"]), []).append(r)
    return [
        f"{len(jobs):>4} x {room:9} {state:10} {sum(r['equivalents'] for r in jobs):>10,} forward-equivalents "
        f"{duration(60 * sum(r['minutes'] for r in jobs)):>11}  {what}"
        for (room, state, what), jobs in alike.items()
    ]


@contextlib.contextmanager
def live(reporting: Reporting) -> "Iterator[Callable[[Progress], None] | None]":
    """Where a plan stands: a live table on a terminal, a line every half minute elsewhere, nothing if it would disturb."""
    if reporting.quiet or reporting.json:
        yield None
        return
    standing = Standing()
    if not sys.stderr.isatty():
        with lines(standing.line):
            yield standing.at
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def drawn() -> Table:
        jobs, spent, left = standing.numbers()
        table = Table("jobs", "now", "so far", "left")
        for number, (job, seconds) in enumerate(standing.running() or [("planning", "")]):
            table.add_row("" if number else jobs, f"{job} {seconds}".strip(), *(["", ""] if number else [spent, left]))
        return table

    with Live(console=Console(stderr=True), get_renderable=drawn, refresh_per_second=1):
        yield standing.at


class Standing:
    """Where a plan stands, told at any moment of its jobs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is known yet."""
        self._clock = clock
        self._start = self._last = clock()
        self._now: tuple[Progress, dict[str, float]] | None = None
        """The last progress, and when its jobs began; one thing, since it is drawn by another thread."""

    def at(self, now: "Progress") -> None:
        """A job begins or ends."""
        self._last = self._clock()
        begun = {} if self._now is None else self._now[1]
        self._now = now, {job.key: begun.get(job.key, self._last) for job in now.running}

    def numbers(self) -> tuple[str, str, str]:
        """Jobs done of how many, the time spent, and what is left of it."""
        spent = duration(self._clock() - self._start)
        if self._now is None:
            return "0", spent, "nobody knows how long"
        now, _ = self._now
        left = max(0.0, now.seconds_left - (self._clock() - self._last))
        return f"{now.done}/{now.total}", spent, f"about {duration(left)} left"

    def running(self) -> list[tuple[str, str]]:
        """The jobs that are being done, each with the time since it began."""
        if self._now is None:
            return []
        now, begun = self._now
        if not now.running:
            return [("finished", "")]
        return [(f"{j.room} {j.describe()}", duration(self._clock() - begun[j.key])) for j in now.running]

    def line(self) -> str:
        """All of it in a line."""
        jobs, spent, left = self.numbers()
        now = "; ".join(job for job, _ in self.running()) or "planning"
        return f"{jobs} jobs, {spent} so far, {left}: {now}"
