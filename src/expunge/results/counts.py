"""What images show by their labels: what targets turned into, and how often each label was detected."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.results.cells import CellKey
from expunge.results.finished import Finished
from expunge.results.group import SET
from expunge.results.meanings import DETECTIONS
from expunge.store.atomic import FORMAT

MOST = 3
"""Labels that a row names of what targets turned into."""


def became(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a method's targets turned into: the labels seen most, by their share of all target images.

    A run's record names its own five most seen labels only, so a share is a lower bound.

    Args:
        records: as a plan's ``records.jsonl`` has them, with their places in the table.
    """
    shown: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    counted: set[tuple[str, str, int]] = set()
    for record in records:
        provenance = record["provenance"]
        if provenance["group"] != str(SET) or provenance["variant"] or not record["metric"].startswith("became@"):
            continue
        label = record["metric"].removeprefix("became@")
        shown.setdefault(provenance["method"], Counter())[label] += round(record["value"] * record["n"] / 100)
        run = (provenance["method"], provenance["split"], provenance["training_seed"])
        if run not in counted:
            counted.add(run)
            total[provenance["method"]] += record["n"]
    return [
        {
            "format": FORMAT,
            "method": method,
            "group": str(SET),
            "metric": "became",
            "shares": {label: round(100 * n / total[method], 1) for label, n in labels.most_common(MOST)},
            "n": total[method],
        }
        for method, labels in shown.items()
    ]


def shares_in_words(shares: Mapping[str, float]) -> str:
    """Labels and their percentages, the greatest first (a file has them by name)."""
    ordered = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{label} {share:.0f}" for label, share in ordered)


def detections(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """How many detections of each label a method's target images had (KPOP's Fig. 3b), where a metric counted them.

    The number of images stands beside, since rows may have several training seeds.
    """
    counted: dict[CellKey, Counter[str]] = {}
    images: Counter[CellKey] = Counter()
    for one in finished:
        cell = CellKey(one.method, one.group, f"{DETECTIONS}{one.variant}")
        for record in one.records:
            instrument = record["provenance"].get("instrument", {})
            if "detections" in instrument and not record["metric"].startswith("ner_kept"):
                counted.setdefault(cell, Counter()).update(instrument["detections"])
                images[cell] += record["n"]
                break  # every threshold's record has the same
    return [
        {
            "format": FORMAT,
            "method": cell.method,
            "group": str(cell.group),
            "metric": cell.metric,
            "counts": dict(labels.most_common()),
            "n": images[cell],
        }
        for cell, labels in counted.items()
    ]
