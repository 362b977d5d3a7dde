"""The tables of a report: those of the results, with what a reader should know of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from expunge.results import tables as results
from expunge.results.grid import Table
from expunge.results.rows import Row

UNITS = "With 95 % intervals; each number's unit stands in its record."


@final
@dataclass(frozen=True, kw_only=True)
class Titled:
    """A table, its title and what a reader should know of it."""

    title: str
    note: str = ""
    table: Table


def tables(summary: Sequence[Row]) -> list[Titled]:
    """What was measured, paired differences, claims, recoveries and costs; empty ones are left out."""
    every = [
        Titled(title="Removed and kept", note="Percent, with 95 % intervals.", table=results.measured(summary)),
        Titled(
            title="Differences on equal prompts and seeds",
            note="First minus second, in points, with paired 95 % intervals. A verdict is undecided where the interval holds "
            "0; equal quality means that it lies within 3 points (ESR) or 5 (the rest), on 1,000 images and two training "
            "seeds.",
            table=results.differences(summary),
        ),
        Titled(
            title="Claims of the papers",
            note="A claim holds where the 95 % interval excludes 0 in the direction it says, and fails where it does in the "
            "other.",
            table=results.claims(summary),
        ),
        Titled(
            title="Recovery with the private key, and its controls",
            note="Images in which the target is back, in percent, by what is injected; in brackets, images that are pictures "
            "at all. A key is shown to work where its own prompts bring the target back and random ones of equal norms, or "
            "other concepts', do not.",
            table=results.recoveries(summary, bare=True),
        ),
        Titled(title="By split", note=UNITS, table=results.by_split(summary)),
        *(
            Titled(title=f"Analysis {name}", note=UNITS, table=table)
            for name, table in results.analyses(summary).items()
        ),
        Titled(
            title="Cost and knowledge",
            note="Means of the erasures, seconds their median. Forwards are forward-equivalents: a forward and backward "
            "counts as 3. Rank methods among those that were told the same.",
            table=results.costs(summary),
        ),
    ]
    return [titled for titled in every if titled.table.rows]
