"""Every claim of both papers, and what was measured: `python benchmarks/claims.py` writes them into docs/results/README.md."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "README.md"
FIRST, LAST = "<!-- claims: written by benchmarks/claims.py -->", "<!-- end of claims -->"
PAPERS = {"KPOP": "kpop-", "DUO": "duo-"}
PLACES = ("Table", "Fig.", "section")
"""How a claim's source begins if a paper makes it."""
TESTBED_1 = "82d62abe815f6798"
"""How the hash of the model begins that was in the box before `testbed-2`."""
VERDICTS = ("holds", "fails", "undecided", "not measured")


def claims(prefix: str) -> Iterator[Mapping[str, Any]]:
    """The papers' claims in the committed results of the plans whose names begin so, each with its ``plan`` and ``model``."""
    for file in sorted(HERE.glob(f"{prefix}*.jsonl")):
        if not file.with_suffix(".toml").exists():
            continue
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        models = {r.get("provenance", {}).get("model_sha256", "") for r in rows}
        version = "1" if any(m.startswith(TESTBED_1) for m in models) else "2"
        for row in rows:
            if "claim" in row and row["source"].startswith(PLACES):
                yield {**row, "plan": file.stem, "testbed": version}


def line(row: Mapping[str, Any]) -> str:
    """A claim as a row of the table."""
    link = f"[`{row['plan']}`](../../benchmarks/{row['plan']}.md)"
    start = [row["claim"], f"{row['source']}, {link}"]
    if row["claim_verdict"] == "not measured":
        return f"| {' | '.join([*start, '–', 'not measured', '–', '–', row['testbed']])} |"
    measured = f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
    seeds = "–" if row["training_seeds"] is None else str(row["training_seeds"])
    return f"| {' | '.join([*start, measured, row['claim_verdict'], str(row['n']), seeds, row['testbed']])} |"


def table(paper: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A paper's claims, and how many of them hold."""
    count = Counter(row["claim_verdict"] for row in rows)
    return [
        f"**{paper}**: {len(rows)} claims; {', '.join(f'{count[verdict]} {verdict}' for verdict in VERDICTS)}.",
        "",
        "| claim | where | measured | verdict | n | training seeds | testbed |",
        "|---|---|---|---|---|---|---|",
        *map(line, rows),
        "",
    ]


def written(page: str) -> str:
    """The page with its claims as they are committed now."""
    before, rest = page.split(FIRST)
    _, after = rest.split(LAST)
    told = [text for paper, prefix in PAPERS.items() for text in table(paper, list(claims(prefix)))]
    return "\n".join([before + FIRST, "", *told]) + LAST + after


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
