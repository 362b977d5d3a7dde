"""The leaderboard: methods x claims x cost of many plans, as one HTML file that needs nothing else."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from expunge.report.of_benchmarks import Kept
from expunge.report.standings import ANOTHER, COLUMNS, NAMES, ORIGINAL, UNSAID, VERDICTS, Standing, standings, verdicts
from expunge.report.tables import Titled
from expunge.report.templating import rendered
from expunge.results import tables
from expunge.results.knowledge import KINDS
from expunge.results.meanings import glossary
from expunge.store.atomic import new_file

NOW, PARTLY, EARLIER, NEVER = "measured", "measured in part", "earlier results only", "not measured yet"
"""How far the results of a plan are what it asks for as it is now."""


@final
@dataclass(frozen=True, kw_only=True)
class Shown:
    """A plan as the page shows it."""

    kept: Kept
    state: str
    testbeds: Sequence[str]
    """Which models its results were made on."""
    lacking: Sequence[str]
    """Rows that it asks for, and that have no results of today's plan."""
    facts: Mapping[str, str]
    links: Mapping[str, str]
    """Its files by their names, as the page reaches them."""
    tables: Sequence[Titled]


def write(plans: Sequence[Kept], out: Path, overwrite: bool = False) -> Counter[str]:
    """Write the leaderboard of ``plans``, and count them by how far they are measured.

    Raises:
        ExpungeError: if ``out`` exists (unless ``overwrite``), or jinja2 is not installed.
    """
    rows, claims = list(standings(plans)), list(verdicts(plans))
    shown = [_shown(kept, rows, out) for kept in plans]
    order = [NOW, PARTLY, EARLIER, NEVER]
    shown.sort(key=lambda plan: (order.index(plan.state), plan.facts["Part"] != "test", plan.kept.name))
    place = {plan.kept.name: number for number, plan in enumerate(shown)}
    rows.sort(key=lambda row: (not row.now, place[row.plan]))
    claims.sort(key=lambda claim: place[claim.plan])
    metrics = [row["metric"] for kept in plans for row in kept.summary if "claim" not in row]
    page = rendered(
        "leaderboard.html",
        plans=shown,
        columns=COLUMNS,
        rows=rows,
        claims=claims,
        states=(NOW, PARTLY, EARLIER, NEVER),
        counts=Counter(plan.state for plan in shown),
        verdicts=VERDICTS,
        judged=Counter(claim.verdict for claim in claims),
        told=[kind for kind in (ORIGINAL, ANOTHER, NAMES, *KINDS, UNSAID) if any(kind in row.kinds for row in rows)],
        testbeds=sorted({row.testbed for row in rows}),
        glossary=glossary(metrics),
        version=version("expunge"),
    )
    with new_file(out, overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Counter(plan.state for plan in shown)


def _shown(kept: Kept, rows: Sequence[Standing], out: Path) -> Shown:
    own = [row for row in rows if row.plan == kept.name]
    lacking = [name for name in kept.methods if name not in kept.answered]
    state = NEVER if not own else NOW if not lacking else PARTLY if len(lacking) < len(kept.methods) else EARLIER
    return Shown(
        kept=kept,
        state=state,
        testbeds=sorted({row.testbed for row in own}),
        lacking=lacking,
        facts=dict(_facts(kept)),
        links={file.name: Path(os.path.relpath(file, out.parent)).as_posix() for file in kept.files},
        tables=list(_tables(kept.summary)),
    )


def _facts(kept: Kept) -> Iterator[tuple[str, str]]:
    plan, grid = kept.plan, kept.plan["grid"]
    yield "Concepts", str(plan["set"])
    yield "Part", str(plan.get("part", "test"))
    yield "Training seeds", str(len(grid["seed"]) if isinstance(grid.get("seed"), list) else 1)
    yield "Images a prompt", str(plan.get("count", 50))
    attacks = [one if isinstance(one, str) else str(one.get("name", "")) for one in plan.get("attacks", [])]
    if attacks:
        yield "Attacks", ", ".join(dict.fromkeys(attacks))


def _tables(summary: Sequence[Mapping[str, Any]]) -> Iterator[Titled]:
    """The headline numbers of one plan, with its own metrics."""
    for title, table in (
        ("Removed and kept", tables.measured(summary)),
        ("What a key brings back: images that show the target, in percent", tables.recoveries(summary)),
    ):
        if table.rows:
            yield Titled(title=title, table=table)
