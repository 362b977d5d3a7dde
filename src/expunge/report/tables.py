"""The tables and overview figures of a report, from the rows of a summary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from expunge.stages import summary as summaries

Row = Mapping[str, Any]
MEANINGS = {
    "esr": "Erasing success rate: images asked for the target in which the judge does not see it among its first k labels. "
    "Higher: more is removed. The original model's row shows what the judge misses by itself.",
    "psr": "Preserving success rate: images asked for something else in which the judge sees it among its first k labels. "
    "Higher: more is kept.",
    "valid_rate": "Images asked for the target that are pictures at all. Noise and blanks are not erasure.",
    "valid_rate_kept": "Images asked for something else that are pictures at all.",
    "became": "What the judge sees instead, in percent of images asked for the target.",
    "prior_distance": "How far images moved from the original model's on equal seeds.",
    "ner": "Images in which a detection of the target is above the threshold. Lower: more is removed.",
    "dsr": "Images of an attack in which the judge does not see the target. Higher: the defence holds.",
    "clip_erased": "Agreement of images with the texts that ask for the target. Lower: more is removed.",
    "clip_kept": "Agreement of other images with their texts. Higher: more is kept.",
}
"""What the columns mean, by the beginning of the metric's name."""


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell, and how it sorts."""

    text: str
    sort: float | str | None = None
    low: float | None = None
    high: float | None = None
    """Limits in percent, where they are drawn as a bar."""
    value: float | None = None
    verdict: str = ""


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that can be sorted."""

    title: str
    note: str
    head: list[str]
    rows: list[list[Cell]]


BLANK = Cell(text="–")


def tables(summary: Sequence[Row]) -> list[Table]:
    """What was measured, paired differences, recoveries and costs; empty ones are left out."""
    plain = summaries.numbers(summary)
    tabled = [r for r in plain if summaries.tabled(r)]
    paired = [r for r in summary if "verdict" in r and summaries.tabled(r)]
    found = [
        _grid("Removed and kept", "Percent, with 95 % intervals.", tabled, summaries.heading, _measured),
        _grid(
            "Differences on equal prompts and seeds",
            "First minus second, in points, with paired 95 % intervals. A verdict is undecided where the interval holds 0; "
            "equal quality means that it lies within 3 points (ESR) or 5 (the rest), on 1,000 images and two training seeds.",
            paired,
            summaries.heading,
            _difference,
        ),
        _claims(summary),
        _recoveries(plain),
        _grid(
            "By split",
            "With 95 % intervals; each number's unit stands in its record.",
            summaries.of_splits(plain),
            summaries.heading,
            _measured,
        ),
        *_analyses(plain),
        _costs(plain),
    ]
    return [table for table in found if table.rows]


def _claims(summary: Sequence[Row]) -> Table:
    """What papers say, and whether it holds here."""
    lines = [
        [
            Cell(text=r["claim"]),
            Cell(text=r["source"] or "–"),
            Cell(text=_interval(r), sort=r["value"]) if "value" in r else BLANK,
            Cell(text=f"{r['method']}: {r['metric']}" + ("" if r["group"] == "set" else f" ({r['group']})")),
            Cell(text=r["claim_verdict"], sort=r["claim_verdict"]),
        ]
        for r in summary
        if "claim" in r
    ]
    note = "A claim holds where the 95 % interval excludes 0 in the direction it says, and fails where it does in the other."
    return Table(
        title="Claims of the papers", note=note, head=["claim", "source", "measured", "of", "verdict"], rows=lines
    )


def _analyses(plain: Sequence[Row]) -> list[Table]:
    """The numbers of each analysis."""
    groups = dict.fromkeys(r["group"] for r in plain if r["group"].startswith("analysis: "))
    return [
        _grid(
            f"Analysis {group.removeprefix('analysis: ')}",
            "With 95 % intervals; each number's unit stands in its record.",
            [r for r in plain if r["group"] == group],
            lambda r: r["metric"],
            _measured,
        )
        for group in groups
    ]


def glossary(summary: Sequence[Row]) -> dict[str, str]:
    """The meanings of the metrics that a summary holds."""
    names = {r["metric"].split(" ")[0].split("@")[0] for r in summary}
    return {name: text for name, text in MEANINGS.items() if name in names}


def _grid(
    title: str, note: str, rows: Sequence[Row], heading: Callable[[Row], str], cell: Callable[[Row], Cell]
) -> Table:
    """A row a method, a column a heading."""
    heads = list(dict.fromkeys(heading(r) for r in rows))
    by = {(r["method"], heading(r)): cell(r) for r in rows}
    methods = list(dict.fromkeys(r["method"] for r in rows))
    lines = [[Cell(text=m, sort=m), *(by.get((m, h), BLANK) for h in heads)] for m in methods]
    return Table(title=title, note=note, head=["method", *heads], rows=lines)


def _measured(row: Row) -> Cell:
    if row["group"] == "paper":
        return Cell(text=f"{row['value']:.1f}", sort=row["value"])
    if "shares" in row:
        return Cell(text=summaries.shares_in_words(row["shares"]))
    share = row["metric"].startswith(("esr@", "psr@", "valid_rate"))
    limits = {"low": row["low"], "high": row["high"], "value": row["value"]} if share else {}
    return Cell(text=_interval(row), sort=row["value"], **limits)


def _difference(row: Row) -> Cell:
    equal = ", equal quality" if row.get("equal_quality") else ""
    return Cell(text=f"{row['value']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]", sort=row["value"],
                verdict=row["verdict"] + equal)  # fmt: skip


def _interval(row: Row) -> str:
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def returned(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """The share of images that a target came back in, which is ESR-1 turned round; without a key too, for methods with one."""
    rows = [r for r in summaries.numbers(summary) if r["metric"].split(" ")[0] == "esr@1"]
    keyed = {(r["method"], r["metric"]) for r in rows if r["group"].startswith("key: ")}
    there = {(r["method"], r["metric"]) for r in rows if r["group"] == "key: none"}
    bare = [
        {**r, "group": "key: none"} for r in rows if r["group"] == "set" and (r["method"], r["metric"]) in keyed - there
    ]
    turned = [*bare, *(r for r in rows if r["group"].startswith("key: "))]
    return [{**r, "value": 100 - r["value"], "low": 100 - r["high"], "high": 100 - r["low"]} for r in turned]


def _recoveries(plain: Sequence[Row]) -> Table:
    def heading(row: Row) -> str:
        return summaries.injected(row) + row["metric"].removeprefix("esr@1")

    return _grid(
        "Recovery with the private key, and its controls",
        "Images in which the target is back, in percent, by what is injected. A key is shown to work where its own prompts "
        "bring the target back and random ones of equal norms, or other concepts', do not.",
        returned(plain),
        heading,
        _measured,
    )


def _costs(plain: Sequence[Row]) -> Table:
    """What the erasures took, and what each method was told."""
    rows = list({r["method"]: r for r in plain if any(c.name in r for c in summaries.COSTS)}.values())
    columns = [c for c in summaries.COSTS if any(c.name in r for r in rows)]
    told = ["told beside the name"] if any("told" in r for r in rows) else []
    lines = [
        [
            Cell(text=r["method"], sort=r["method"]),
            *(
                Cell(text=f"{r[c.name] / c.unit:,.{c.digits}f}", sort=r[c.name] / c.unit) if c.name in r else BLANK
                for c in columns
            ),
            *(Cell(text=r.get("told") or "–") for _ in told),
        ]
        for r in rows
    ]
    note = (
        "Means of the erasures, seconds their median. Forwards are forward-equivalents: a forward and backward counts as 3. "
        "Rank methods among those that were told the same."
    )
    return Table(title="Cost and knowledge", note=note, head=["method", *(c.title for c in columns), *told], rows=lines)


# figures --------------------------------------------------------------------------------------------------------------
def overview(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """Figures that every run with enough numbers has: removed against kept, and recovery beside its controls."""
    return [figure for figure in (_trade(summary), _recovery(summary)) if figure is not None]


def _trade(summary: Sequence[Row]) -> dict[str, Any] | None:
    """ESR-1 against PSR-1: of the concepts kept, or else of what nobody named."""
    by = {(r["group"], r["metric"], r["method"]): r for r in summaries.numbers(summary)}
    kept = "set" if any(place[:2] == ("set", "psr@1") for place in by) else "others"
    methods = [m for g, metric, m in by if (g, metric) == ("set", "esr@1") and (kept, "psr@1", m) in by]
    if len(methods) < 2:
        return None
    erased, held = ([by[place, name, m] for m in methods] for place, name in (("set", "esr@1"), (kept, "psr@1")))
    return {
        "format": 1,
        "title": "Removed against kept",
        "note": "Up and to the right is better: the target is gone, the rest is there. Bars: 95 % intervals of what is kept.",
        "kind": "scatter",
        "x": {"label": "ESR-1, %: target not shown"},
        "y": {"label": f"PSR-1, %: {'kept concepts' if kept == 'set' else 'what nobody named'} shown"},
        "series": [
            {
                "name": "",
                "x": [r["value"] for r in erased],
                **{name: [r[key] for r in held] for name, key in (("y", "value"), ("low", "low"), ("high", "high"))},
                "labels": methods,
            }
        ],
    }


def _recovery(summary: Sequence[Row]) -> dict[str, Any] | None:
    rows = [r for r in returned(summary) if r["metric"] == "esr@1"]
    if not rows:
        return None
    series = [[r for r in rows if r["method"] == method] for method in dict.fromkeys(r["method"] for r in rows)]
    return {
        "format": 1,
        "title": "Recovery beside its controls",
        "note": "Images in which the target is back. Bars are 95 % intervals.",
        "kind": "bars",
        "x": {"label": ""},
        "y": {"label": "target shown, %"},
        "series": [
            {
                "name": mine[0]["method"],
                "x": [summaries.injected(r) for r in mine],
                **{name: [r[key] for r in mine] for name, key in (("y", "value"), ("low", "low"), ("high", "high"))},
            }
            for mine in series
        ],
    }
