"""The papers' claims that plans judge, and what was measured: `python benchmarks/claims.py` writes them into docs/results.

`claims.md` there has each claim; `README.md` counts them by table and figure, and spells out those that fail.
"""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from expunge.report.standings import PAPERS as PLACES
from expunge.report.standings import VERDICTS
from expunge.testbed import version_of

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results"
FIRST, LAST = "<!-- claims: written by benchmarks/claims.py -->", "<!-- end of claims -->"
CONDITION = ", a condition"
"""Ends the source of what must hold beside a paper's claim, and is none itself."""
WIDTH = 156
"""Characters of a line of text."""
PAPERS = {"KPOP": "kpop-", "DUO": "duo-"}


def measured(rows: Sequence[Mapping[str, Any]], claim: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a plan's committed rows say of its claim: the verdict of the same words on the same rows, metric and group."""
    wanted = (claim["says"], " - ".join(claim["rows"]), claim.get("metric", "esr@1"), claim.get("group", "set"))
    same = [r for r in rows if (r.get("claim"), r.get("method"), r.get("metric"), r.get("group")) == wanted]
    return same[0] if same else {"claim_verdict": "not measured"}


def testbed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which model in the box the rows are of, by the hashes that they name."""
    models = {r.get("provenance", {}).get("model_sha256") for r in rows} - {None}
    if not models:
        return "–"
    return min(version_of(model).removeprefix("testbed-") for model in models)


def claims(prefix: str) -> Iterator[Mapping[str, Any]]:
    """What the plans whose names begin so judge of the papers' claims, each with its ``plan`` and ``testbed``.

    One that goes on ("and …") from a claim that is not a paper's is told with that one, in brackets.
    """
    for plan in sorted(HERE.glob(f"{prefix}*.toml")):
        results = plan.with_suffix(".jsonl")
        rows = [json.loads(text) for text in results.read_text().splitlines()] if results.exists() else []
        head: Mapping[str, Any] = {}
        for claim in tomllib.loads(plan.read_text()).get("claims", []):
            goes_on = claim["says"].startswith("and ")
            head = head if goes_on else claim
            if claim["source"].startswith(PLACES):
                alone = not goes_on or head["source"].startswith(PLACES)
                told = {"head": head["says"]} if goes_on else {}
                says = claim["says"] if alone else f"({head['says']}) {claim['says']}"
                found = measured(rows, claim)
                version = "–" if found["claim_verdict"] == "not measured" else testbed(rows)
                yield {**found, **told, "claim": says, "source": claim["source"], "plan": plan.stem, "testbed": version}


def linked(plan: str) -> str:
    """A plan's name, with a link to its table, or to itself where it was not run."""
    return f"[`{plan}`](../../benchmarks/{plan}.{'md' if (HERE / f'{plan}.md').exists() else 'toml'})"


def line(row: Mapping[str, Any]) -> str:
    """A claim as a row of the table."""
    start = [row["claim"].replace("|", "\\|"), f"{row['source']}, {linked(row['plan'])}"]
    if row["claim_verdict"] == "not measured":
        return f"| {' | '.join([*start, '–', 'not measured', '–', '–', row['testbed']])} |"
    value = f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
    seeds = "–" if row["training_seeds"] is None else str(row["training_seeds"])
    return f"| {' | '.join([*start, value, row['claim_verdict'], str(row['n']), seeds, row['testbed']])} |"


def counted(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The paper's claims: what must hold beside one is none itself."""
    return [row for row in rows if not row["source"].endswith(CONDITION)]


def table(paper: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A paper's claims, and how many of them hold; conditions are told, and not counted."""
    own = counted(rows)
    count = Counter(row["claim_verdict"] for row in own)
    conditions = len(rows) - len(own)
    return [
        f"**{paper}**: {len(own)} claims; {', '.join(f'{count[verdict]} {verdict}' for verdict in VERDICTS)}"
        + (f"; and {conditions} conditions." if conditions else "."),
        "",
        "| claim | where | measured | verdict | n | training seeds | testbed |",
        "|---|---|---|---|---|---|---|",
        *map(line, rows),
        "",
    ]


def place(source: str) -> str:
    """The table, figure or section of a source: `Fig. 4b` is of `Fig. 4`; claims of our own on it stand apart."""
    return re.sub(r"(?<=\d)[a-z]\b", "", source)


def overview(paper: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A paper's claims, counted by table and figure, and the ones that fail."""
    by_place: dict[str, list[Mapping[str, Any]]] = {}
    for row in counted(rows):
        by_place.setdefault(place(row["source"]), []).append(row)
    lines = [f"| {paper} | {' | '.join(VERDICTS)} | plan | n | seeds |", "|---|" + "---|" * (len(VERDICTS) + 3)]
    for name, there in sorted(by_place.items()):
        count = Counter(row["claim_verdict"] for row in there)
        plans = ", ".join(map(linked, sorted({row["plan"] for row in there})))
        sizes = sorted({row["n"] for row in there if row.get("n")})
        n = f"{sizes[0]:,} to {sizes[-1]:,}" if len(sizes) > 1 else f"{sizes[0]:,}" if sizes else "–"
        seeds = (
            ", ".join(map(str, sorted({row["training_seeds"] for row in there if row.get("training_seeds")}))) or "–"
        )
        told = [*(str(count[verdict] or "") for verdict in VERDICTS), plans, n, seeds]
        lines.append(f"| {name} | {' | '.join(told)} |")
    lines.append("")
    for name, there in sorted(by_place.items()):
        failed = failures([row for row in there if row["claim_verdict"] == "fails"])
        lines += [*wrap(f"{name} fails: {failed}.", WIDTH), ""] if failed else []
    return lines


def failures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Claims that fail, in order, with what was measured; one that goes on is told with what it goes on from."""
    told: list[str] = []
    last = ""
    for row in rows:
        head = row.get("head", row["claim"])
        says = (
            row["claim"] if head in (last, row["claim"]) or row["claim"].startswith("(") else f"({head}) {row['claim']}"
        )
        told.append(f"{says} ({row['value']:.1f} points [{row['low']:.1f}, {row['high']:.1f}])")
        last = head
    return "; ".join(told)


def put(page: str, tell: Callable[[str, Sequence[Mapping[str, Any]]], list[str]]) -> str:
    """A page with its claims, told by ``tell``, as they are committed now."""
    before, rest = page.split(FIRST)
    _, after = rest.split(LAST)
    told = [text for paper, prefix in PAPERS.items() for text in tell(paper, list(claims(prefix)))]
    return "\n".join([before + FIRST, "", *told]) + LAST + after


PAGES = {RESULTS / "README.md": overview, RESULTS / "claims.md": table}
"""The pages that have claims, and how each tells them."""


if __name__ == "__main__":
    for page, tell in PAGES.items():
        page.write_text(put(page.read_text(), tell))
