"""What a leaderboard is made of: a row for each method of each plan, and one for each claim."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, final

from expunge.report.of_benchmarks import Kept
from expunge.results.claims import NOT_MEASURED, Claim, judged
from expunge.results.costs import COSTS
from expunge.results.grid import BLANK, Cell
from expunge.results.group import DOUBLED
from expunge.results.knowledge import in_words, kinds
from expunge.results.lookup import Known, find_row, known_rows
from expunge.results.recoveries import turned
from expunge.results.rows import group_of
from expunge.results.tables import behind

ORIGINAL, ANOTHER = "nothing (the original)", "nothing (another model)"
NAMES, UNSAID = "targets only", "not recorded"
"""What a method was told beside what `results.knowledge` tells kinds of."""
PAPERS = ("Table", "Fig.", "section")
"""How a claim's source begins if a paper makes it."""
VERDICTS = ("holds", "fails", "undecided", NOT_MEASURED)
TAKEN = ("erase_equivalents", "pairs_equivalents", "fisher_equivalents", "erase_seconds", "artefact_bytes")
"""Costs that have a column."""


class Column(NamedTuple):
    """A column of numbers of the leaderboard."""

    title: str
    says: str
    """What it is, in a few words."""
    cell: Callable[[str, Known], Cell]
    """The cell of a method, of the rows of its plan's summary."""


@final
@dataclass(frozen=True, kw_only=True)
class Standing:
    """A method of a plan, as it stands in the leaderboard."""

    plan: str
    method: str
    eraser: str
    told: str
    """What it was told beside names, in words."""
    kinds: Sequence[str]
    """The kinds of that."""
    testbed: str
    """Which model its results were made on."""
    now: bool
    """Whether they are what the plan asks for as it is now."""
    cells: Sequence[Cell]
    """One for each of `COLUMNS`."""
    claims: Mapping[str, int]
    """Of the claims about it, how many have each verdict."""


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim of a plan, and what was measured."""

    plan: str
    says: str
    source: str
    paper: bool
    """Whether a paper makes it."""
    of: str
    """The rows and the number that it is about."""
    rows: Sequence[str]
    expected: str
    verdict: str
    """On the plan as it is now."""
    measured: Cell
    earlier: Cell
    """What other results say of the same words: made on another model, or with an earlier text of the plan."""
    earlier_verdict: str
    testbed: str
    """Which model the number was made on; empty without one."""


# methods --------------------------------------------------------------------------------------------------------------
def standings(plans: Sequence[Kept]) -> Iterator[Standing]:
    """A row for each method of each plan that has a number, in the order of the plans' tables."""
    for kept in plans:
        known, claims = known_rows(kept.summary), list(verdicts([kept]))
        first = {row["method"]: row for row in reversed(kept.summary) if "verdict" not in row and "claim" not in row}
        there = dict.fromkeys(row["method"] for row in kept.summary if "low" in row and row["method"] in first)
        for method in there:
            told, of = _told(kept, method)
            now = method in kept.answered
            about = [claim.verdict for claim in claims if method in claim.rows and now]
            yield Standing(
                plan=kept.name,
                method=method,
                eraser=_eraser(kept, method),
                told=told,
                kinds=of,
                testbed=kept.testbed_of(method) or UNSAID,
                now=now,
                cells=[*(column.cell(method, known) for column in NUMBERS), *_costs(first[method])],
                claims={verdict: about.count(verdict) for verdict in VERDICTS if verdict in about},
            )


def _told(kept: Kept, method: str) -> tuple[str, list[str]]:
    """What a method was told, in words and by kinds; of its first record, as tables say it."""
    own = (r for r in kept.records if r["provenance"].get("method") == method)
    first = next((r for r in own if r["provenance"].get("group") == "set"), None)
    if first is None or not {"templates", "random_texts", "oracles"} <= first["knowledge"].keys():
        return UNSAID, [UNSAID]
    known = first["knowledge"]
    if not known["targets"]:
        other = kept.plan.get("method", {}).get(method, {}).get("model")
        return (ANOTHER, [ANOTHER]) if other else (ORIGINAL, [ORIGINAL])
    return in_words(known) or NAMES, kinds(known) or [NAMES]


def _eraser(kept: Kept, method: str) -> str:
    """The eraser of a row; empty for the original."""
    named = {str(r["eraser"]) for r in kept.records if r["provenance"].get("method") == method and r["eraser"]}
    return ", ".join(sorted(named))


# numbers --------------------------------------------------------------------------------------------------------------
def _cell(row: Mapping[str, Any] | None, share: bool = True, more: str = "") -> Cell:
    if row is None:
        return BLANK
    value, low, high = (float(row[name]) for name in ("value", "low", "high"))
    return Cell(value=value, low=low, high=high, share=share, note=behind(row) + more)


def _of(group: str, metric: str) -> Callable[[str, Known], Cell]:
    return lambda method, known: _cell(find_row(known, method, group, metric))


def _attacked(method: str, known: Known) -> Cell:
    """The worst that an attack left of an erasure: the least ESR-1, or else the least DSR.

    Twice an attack's budget is left out: only some rows were given it.
    """
    rows = [row for (name, _, _), row in known.items() if name == method and "verdict" not in row]
    attacked = [row for row in rows if group_of(row).kind == "attack" and not row["group"].endswith(DOUBLED)]
    for metric in ("esr@1", "dsr"):
        found = [row for row in attacked if row["metric"].split(" ")[0] == metric]
        if found:
            worst = min(found, key=lambda row: row["value"])
            return _cell(worst, more=f"; {metric.upper().replace('@', '-')}, {group_of(worst).name}")
    return BLANK


def _recovered(method: str, known: Known) -> Cell:
    row = find_row(known, method, "key: own", "esr@1")
    return BLANK if row is None else _cell(turned(row))


NUMBERS = (
    Column("ESR-1", "erased: % of images without the target", _of("set", "esr@1")),
    Column("valid", "% of those that are pictures at all", _of("set", "valid_rate")),
    Column("PSR-1", "kept: % of kept concepts still shown", _of("set", "psr@1")),
    Column("others", "kept: % shown of what nobody named", _of("others", "psr@1")),
    Column("attacked", "% without the target under the worst attack", _attacked),
    Column("own key", "% with the target again", _recovered),
)


def _costs(row: Mapping[str, Any]) -> list[Cell]:
    columns = [column for column in COSTS if column.name in TAKEN]
    return [
        Cell(text=column.written(row), sort=row[column.name] / column.unit) if column.name in row else BLANK
        for column in columns
    ]


COSTING = [(column.title, column) for column in COSTS if column.name in TAKEN]
COLUMNS = [
    *((column.title, column.says) for column in NUMBERS),
    *((title, {"forwards": "forward-equivalents of an erasure"}.get(title, "")) for title, _ in COSTING),
]
"""Titles of the columns, and what they are."""


# claims ---------------------------------------------------------------------------------------------------------------
def verdicts(plans: Sequence[Kept]) -> Iterator[Verdict]:
    """A row for each claim of each plan as it is now.

    A number counts if it is of the same words, rows, metric and group, held against the same, and if its rows' results are what
    the plan asks for now; else it stands apart.
    """
    for kept in plans:
        head = ""
        for claim in kept.plan.get("claims", []):
            goes_on = claim["says"].startswith("and ")
            head = head if goes_on else claim["says"]
            yield _verdict(kept, claim, f"({head}) {claim['says']}" if goes_on and head else claim["says"])


def _verdict(kept: Kept, claim: Mapping[str, Any], says: str) -> Verdict:
    metric, group = claim.get("metric", "esr@1"), claim.get("group", "set")
    expected, than = claim.get("expected", "higher"), claim.get("than")
    if than is not None:
        expected = f"{expected} than {than:g}"
    wanted = (claim["says"], " - ".join(claim["rows"]), metric, group, expected)
    names = ("claim", "method", "metric", "group", "expected")
    found = next((row for row in kept.summary if tuple(row.get(name) for name in names) == wanted), {})
    there = "value" in found
    now = there and all(name in kept.answered for name in claim["rows"])
    number = _cell(found, share=False) if there else BLANK
    said = _judged(kept, claim, found) if there else NOT_MEASURED
    return Verdict(
        plan=kept.name,
        says=says,
        source=str(claim.get("source", "")),
        paper=str(claim.get("source", "")).startswith(PAPERS),
        of=f"{wanted[1]}: {metric}" + ("" if group == "set" else f" ({group})"),
        rows=claim["rows"],
        expected=expected,
        verdict=said if now else NOT_MEASURED,
        measured=number if now else BLANK,
        earlier=number if there and not now else BLANK,
        earlier_verdict=said if there and not now else "",
        testbed=_testbed(kept, claim["rows"]) if there else "",
    )


def _judged(kept: Kept, claim: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The verdict by the rule that the plan has now, such as how near is equal; what was kept may have been judged by another.

    Raises:
        ExpungeError: for a claim that contradicts itself.
    """
    own = {field.name: claim[field.name] for field in fields(Claim) if field.name in claim}
    rule = Claim(**{**own, "rows": tuple(claim["rows"])})
    trained = () if found.get("training_seeds", 1) is None else rule.rows
    return str(judged([rule], kept.summary, trained)[0]["claim_verdict"])


def _testbed(kept: Kept, rows: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(kept.testbed_of(name) or UNSAID for name in rows))
