"""What tells the measurements of one row apart that a folder holds: their settings, targets and references."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.results.group import SET

Record = Mapping[str, Any]


def told_apart(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Records that say which row and group they are of, each with the ``variant`` that tells it from others of the same.

    Where none of a metric's records needs it, it is empty; where one does, all of that metric's name the same things.
    """
    named: dict[str, set[str]] = {}
    cells: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        cells.setdefault((*_row(record), record["metric"]), []).append(record)
    for several in cells.values():
        differing = _differing([*map(_about, several)])
        for record in several:
            named.setdefault(_instrument(record), set()).update(differing)
    variants = [_variant(record, named[_instrument(record)]) for record in records]
    placed = zip(records, _numbered(records, variants), strict=True)
    return [{**record, "provenance": {**record["provenance"], "variant": variant}} for record, variant in placed]


def _row(record: Record) -> tuple[str, str]:
    return record["provenance"]["method"], record["provenance"]["group"]


def _instrument(record: Record) -> str:
    """The metric or analysis that a record is of, as the catalog calls it."""
    provenance = record["provenance"]
    return str(provenance.get("metric", provenance.get("analysis", record["metric"])))


def _about(record: Record) -> dict[str, str]:
    """What a record was measured with and for, in words; what follows from the targets, the words that were kept, last."""
    provenance = record["provenance"]
    said: dict[str, Any] = {
        **provenance.get("settings", {}),
        "target": ", ".join(record["concepts"]),
        "reference": provenance.get("reference"),
        "images": None if provenance["group"] == str(SET) else provenance.get("images"),  # else the row's own name
        "seed": provenance.get("first_seed"),
        "kept": ", ".join(provenance.get("retain_measured") or ()),
    }
    told = {name: value for name, value in said.items() if value not in (None, "")}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}


def _differing(abouts: Sequence[Mapping[str, str]]) -> list[str]:
    """The names under which they differ; of the words that were kept only where nothing else tells them apart."""
    names = dict.fromkeys(name for about in abouts for name in about)
    differing = [name for name in names if len({about.get(name) for about in abouts}) > 1]
    without = [name for name in differing if name != "kept"]
    return without if _ways(abouts, without) == _ways(abouts, differing) else differing


def _ways(abouts: Iterable[Mapping[str, str]], names: Sequence[str]) -> int:
    """How many of them can be told apart by these names."""
    return len({tuple(about.get(name) for name in names) for about in abouts})


def _variant(record: Record, names: set[str]) -> str:
    said = ", ".join(f"{name} {value}".strip() for name, value in _about(record).items() if name in names)
    return f" ({said})" if said else ""


def _numbered(records: Sequence[Record], variants: Sequence[str]) -> list[str]:
    """Variants, with a number where the same was measured once more and nobody said when."""
    seen: dict[tuple[str, ...], list[set[str]]] = {}
    numbered: list[str] = []
    for record, variant in zip(records, variants, strict=True):
        times = seen.setdefault((*_row(record), _instrument(record), variant), [set()])
        if record["metric"] in times[-1]:
            times.append(set())
        times[-1].add(record["metric"])
        numbered.append(f"{variant} ({len(times)})" if len(times) > 1 else variant)
    return numbered
