"""What stays of a run's results where they are kept for others: `benchmarks/` and what is sent to it have the same layout."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

ATTACKED = ("esr@", "confidence")
"""Metrics of attacks' images that are left out: DSR, which stays, is of the same images."""
LEFT_OUT = re.compile(r"became@|[ep]sr@(?!1\b)|ner@(?!0\.[35]\b)|valid_rate|target_distance")
"""How metrics begin that are left out wherever they stand: ESR-1, PSR-1 or NER at 0.3 and 0.5 is of the same images."""


def left_out(row: Mapping[str, Any]) -> bool:
    """Whether a record is left out, as all of keys' are. The summary has its number."""
    group, metric = row["provenance"]["group"], row["metric"]
    attacked = group.startswith("attack: ") and metric.startswith(ATTACKED)
    return group.startswith("key: ") or LEFT_OUT.match(metric) is not None or attacked


def kept(records: Sequence[Mapping[str, Any]], summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a kept file: the records that stay, then the whole summary."""
    return [*(dict(row) for row in records if not left_out(row)), *map(dict, summary)]
