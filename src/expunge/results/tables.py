"""The tables of a summary, neither Markdown nor HTML: which cells stand where, and what they hold."""

from collections.abc import Sequence
from typing import Any

from expunge.results.claims import UNDECIDED
from expunge.results.costs import COSTS
from expunge.results.counts import shares_in_words
from expunge.results.grid import BLANK, Cell, Table, grid
from expunge.results.meanings import is_headline, is_share
from expunge.results.recoveries import injected, returned, without_key
from expunge.results.rows import Row, group_of, numbers


# what was measured ----------------------------------------------------------------------------------------------------
def measured(summary: Sequence[Row]) -> Table:
    """The main numbers: a row a method, a column a metric."""
    return grid([row for row in numbers(summary) if _tabled(row)], _heading, _number)


def differences(summary: Sequence[Row]) -> Table:
    """Paired differences of the same numbers, in points."""
    return grid([row for row in summary if "verdict" in row and _tabled(row)], _heading, _difference)


def by_split(summary: Sequence[Row]) -> Table:
    """The numbers of one split alone, the split beside the method's name."""
    rows = [row for row in numbers(summary) if group_of(row).kind == "split"]
    alone = [{**row, "method": f"{row['method']}, {group_of(row).name}", "group": "set"} for row in rows]
    return grid(alone, _heading, _number)


def analyses(summary: Sequence[Row]) -> dict[str, Table]:
    """The numbers of each analysis, by its name."""
    rows = [row for row in numbers(summary) if group_of(row).kind == "analysis"]
    return {
        name: grid([row for row in rows if group_of(row).name == name], lambda row: row["metric"], _number)
        for name in dict.fromkeys(group_of(row).name for row in rows)
    }


def recoveries(summary: Sequence[Row], bare: bool = False) -> Table:
    """In how many images targets came back, by what is injected; with ``bare``, without a key for every method that has one."""
    rows = [*(without_key(summary) if bare else ()), *returned(summary)]
    several = len({row["metric"] for row in rows}) > 1
    valid = {
        (row["method"], row["group"], row["metric"].removeprefix("valid_rate")): row["value"]
        for row in numbers(summary)
        if row["metric"].startswith("valid_rate")
    }

    def heading(row: Row) -> str:
        return injected(group_of(row)) + (_variant(row) if several else "")

    def back(row: Row) -> Cell:
        return Cell(
            **_interval(row),
            share=True,
            note=behind(row),
            valid=valid.get((row["method"], row["group"], _variant(row))),
        )

    return grid(rows, heading, back)


def _variant(row: Row) -> str:
    return row["metric"].removeprefix("esr@1")


# what it took, and what papers say ------------------------------------------------------------------------------------
def costs(summary: Sequence[Row]) -> Table:
    """What each method's erasures took, and what it was told."""
    names = [*(column.name for column in COSTS), "told"]
    rows: dict[str, Row] = {}
    for row in numbers(summary):
        if any(name in row for name in names):
            rows.setdefault(row["method"], row)
    columns = [column for column in COSTS if any(column.name in row for row in rows.values())]
    told = ["told beside the name"] if any("told" in row for row in rows.values()) else []
    lines = [
        [
            Cell(text=method),
            *(
                Cell(text=column.written(row), sort=row[column.name] / column.unit) if column.name in row else BLANK
                for column in columns
            ),
            *(Cell(text=row.get("told") or BLANK.text) for _ in told),
        ]
        for method, row in rows.items()
    ]
    return Table(head=["method", *(column.title for column in columns), *told], rows=lines)


def claims(summary: Sequence[Row]) -> Table:
    """What papers say, and whether it holds here."""
    lines = [
        [
            Cell(text=row["claim"]),
            Cell(text=row["source"] or BLANK.text),
            Cell(**_interval(row)) if "value" in row else BLANK,
            Cell(text=f"{row['method']}: {row['metric']}" + ("" if row["group"] == "set" else f" ({row['group']})")),
            Cell(text=_judged(row)),
            Cell(text=_seeds(row)),
        ]
        for row in summary
        if "claim" in row
    ]
    return Table(head=["claim", "source", "measured", "of", "verdict", "training seeds"], rows=lines)


def _judged(claim: Row) -> str:
    """The verdict on a claim; where it is that something resists an attack, with what is known of the attack's budget."""
    verdict, budget = claim["claim_verdict"], claim.get("attack_budget")
    return (
        verdict if budget is None else f"{verdict} (attack {'not shown saturated' if budget == UNDECIDED else budget})"
    )


def _seeds(claim: Row) -> str:
    """How many trainings a verdict rests on, in words."""
    seeds = claim.get("training_seeds")
    return BLANK.text if seeds is None else "one seed" if seeds == 1 else str(seeds)


# cells ----------------------------------------------------------------------------------------------------------------
def _tabled(row: Row) -> bool:
    return is_headline(row["metric"], group_of(row))


def _heading(row: Row) -> str:
    """What the table calls the column of a row of the summary."""
    return row["metric"] if row["group"] == "set" else f"{row['group']} {row['metric']}"


def _interval(row: Row) -> dict[str, Any]:
    return {name: float(row[name]) for name in ("value", "low", "high")}


def behind(row: Row) -> str:
    """Of how many images and training seeds a number is, as far as its row says."""
    n, seeds = row.get("n"), row.get("training_seeds")
    said = ("" if n is None else f"n = {n:,}", "" if seeds is None else f"{seeds} seed{'' if seeds == 1 else 's'}")
    return ", ".join(filter(None, said))


def _number(row: Row) -> Cell:
    if row["group"] == "paper":
        return Cell(value=float(row["value"]))
    if "shares" in row:
        return Cell(text=shares_in_words(row["shares"]))
    return Cell(**_interval(row), share=is_share(row["metric"]), note=behind(row))


def _difference(row: Row) -> Cell:
    return Cell(**_interval(row), verdict=row["verdict"], equal=bool(row.get("equal_quality")))
