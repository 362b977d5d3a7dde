"""What a report shows of attacks: what each kind of attacker gets back, and the images in which most came back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from expunge.report.album import data_uri
from expunge.report.run import Run
from expunge.report.sensitive import covered
from expunge.results.attackers import Attacked, Standing, attacked, standings
from expunge.results.grid import BLANK, Cell, Table
from expunge.store.listing import METADATA, read_listed

WORST = 24
"""Images that are shown at most, over all rows and attacks."""


@final
@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image in which an attack brought a target back."""

    uri: str
    method: str
    attack: str
    prompt: str
    seed: int
    sure: float | None
    """How sure the judge is that it shows the target, from 0 to 1; None where nobody wrote it down."""
    covered: bool


@final
@dataclass(frozen=True, kw_only=True)
class Attacks:
    """What a page shows of attacks."""

    standings: Sequence[Standing]
    table: Table
    worst: Sequence[Shown]
    single: bool
    """Whether intervals are over the images of single runs."""


def attacks(run: Run, blur: Sequence[str] = (), images: int = WORST) -> Attacks | None:
    """What ``run`` has of attacks; None of a run that has none."""
    found = attacked(run.summary, run.records)
    if not found:
        return None
    return Attacks(
        standings=standings(run.summary, run.records),
        table=_table(found),
        worst=_worst(run, blur, images),
        single=any(one.one_run for one in found),
    )


def _table(found: Sequence[Attacked]) -> Table:
    """A line an attack and row, what brought most back first."""
    doubled = any(one.budget for one in found)
    lines = [
        [
            Cell(text=one.method),
            Cell(text=one.attack),
            Cell(text=one.access),
            Cell(value=one.shown.value, low=one.shown.low, high=one.shown.high, share=True),
            BLANK
            if one.original is None
            else Cell(value=one.original.value, low=one.original.low, high=one.original.high),
            Cell(text=str(one.shown.n), sort=float(one.shown.n)),
            *([Cell(text=one.budget or BLANK.text)] if doubled else []),
            Cell(text=one.how),
        ]
        for one in found
    ]
    head = ["method", "attack", "its attacker holds", "target shown, %", "of the original, %", "images"]
    return Table(head=[*head, *(["its budget"] if doubled else []), "returns"], rows=lines)


def _worst(run: Run, blur: Sequence[str], most: int) -> list[Shown]:
    """The images that the judge is surest of, as many of each row and attack."""
    turns: dict[tuple[str, str], int] = {}
    ranked: list[tuple[int, float, int]] = []
    for place, row in enumerate(run.worst):
        own = (row["method"], row["attack"])
        turns[own] = turns.get(own, -1) + 1
        ranked.append((turns[own], -(row["sure"] or 0.0), place))
    chosen = sorted((sure, place) for _, sure, place in sorted(ranked)[:most])
    return [shown for _, place in chosen if (shown := _shown(run, place, blur)) is not None]


def _shown(run: Run, place: int, blur: Sequence[str]) -> Shown | None:
    """One of the worst images; None if it is no longer stored."""
    row = run.worst[place]
    folder = Path(row["folder"])
    if not (folder / METADATA).is_file():
        return None
    mine = [one for one in read_listed(folder) if one.label == row["label"]]
    if row["number"] >= len(mine):
        return None
    one = mine[row["number"]]
    return Shown(
        uri=data_uri(one.path),
        method=row["method"],
        attack=row["attack"],
        prompt=one.prompt,
        seed=one.seed,
        sure=row["sure"],
        covered=covered([one.label, one.prompt], blur),
    )
