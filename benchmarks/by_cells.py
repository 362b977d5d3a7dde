"""A difference of two rows that no table has, from committed records: paired by split and training seed.

    python benchmarks/by_cells.py kpop-eq7 eq7-mid removal --metric psr@1 --group others

prints it in points, with Student's 95 % interval over these cells, and puts it into `by_cells.json`. Tables pair by prompt or
concept and image, which needs the images. This is for rows that a plan did not ask to compare, when its images are gone.
"""

import argparse
import json
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t

HERE = Path(__file__).parent
RESULT = Path(__file__).with_suffix(".json")


def cells(plan: str, method: str, metric: str, group: str) -> dict[tuple[str, int], float]:
    """A row's value by split and training seed.

    Raises:
        SystemExit: if the plan's committed records have none.
    """
    found: dict[tuple[str, int], float] = {}
    for text in (HERE / f"{plan}.jsonl").read_text().splitlines():
        record = json.loads(text)
        by = record.get("provenance")
        if by and (by["method"], by["group"], record["metric"]) == (method, group, metric):
            found[by["split"], by["training_seed"]] = record["value"]
    if not found:
        raise SystemExit(f"{plan}: no record of '{method}', {metric}, {group}")
    return found


def difference(plan: str, row: str, other: str, metric: str, group: str) -> dict[str, float | int | str]:
    """The mean over cells that both have, with Student's interval.

    Raises:
        SystemExit: if there are fewer than three.
    """
    first, second = (cells(plan, method, metric, group) for method in (row, other))
    apart = [first[cell] - second[cell] for cell in sorted(first.keys() & second.keys())]
    if len(apart) < 3:
        raise SystemExit(f"{plan}: '{row}' and '{other}' share {len(apart)} cells: expected three or more")
    half = float(t.ppf(0.975, len(apart) - 1)) * stdev(apart) / sqrt(len(apart))
    value = mean(apart)
    return {
        "plan": plan,
        "rows": f"{row} - {other}",
        "metric": metric,
        "group": group,
        "value": round(value, 2),
        "low": round(value - half, 2),
        "high": round(value + half, 2),
        "cells": len(apart),
    }


def main() -> None:
    """Compute one, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="of benchmarks/")
    parser.add_argument("rows", nargs=2, help="of its grid")
    parser.add_argument("--metric", default="esr@1")
    parser.add_argument("--group", default="set")
    options = parser.parse_args()
    found = difference(options.plan, *options.rows, options.metric, options.group)
    known = json.loads(RESULT.read_text()) if RESULT.exists() else []
    same = ("plan", "rows", "metric", "group")
    known = [row for row in known if [row[key] for key in same] != [found[key] for key in same]]
    RESULT.write_text(
        json.dumps(sorted([*known, found], key=lambda row: [str(row[key]) for key in same]), indent=1) + "\n"
    )
    print(
        f"{found['rows']}: {found['metric']} ({found['group']}) {found['value']:+.1f} [{found['low']:.1f}, {found['high']:.1f}]"
    )


if __name__ == "__main__":
    main()
