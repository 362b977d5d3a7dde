"""What a report knows of a run: its records, image folders, erasures and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from expunge.core.figure import Figure
from expunge.results.files import AUDIT, FIGURES, PLAN
from expunge.results.rows import group_of
from expunge.store.atomic import read_json

ORIGINAL = "original"
"""The model without edits, as plans call it."""


@final
@dataclass(frozen=True, kw_only=True)
class Side:
    """An image folder of a run."""

    name: str
    """Which model the images are of: a method, perhaps with what was injected."""
    scene: str
    """Which prompts they are for; sides of one scene are compared."""
    folder: Path
    targets: tuple[str, ...]
    """Concepts that should be gone."""


@final
@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What was removed by what, in one row of the tables."""

    method: str
    """What the row is called."""
    eraser: str
    """Empty where it is not known: of weights that others made."""
    settings: Mapping[str, Any]
    targets: Mapping[str, Sequence[str]]
    """What it was told to remove, by split."""
    retain: Sequence[str]
    anchors: Sequence[str]
    knowledge: Mapping[str, Any]
    """All that it was told, as records have it."""
    seeds: Sequence[int]
    edits: Sequence[str]
    """Ids of all edits behind the row."""


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, as far as its folder tells."""

    name: str
    about: str
    records: Sequence[Mapping[str, Any]]
    summary: Sequence[Mapping[str, Any]]
    """Rows as `results.summary` writes them: one a method, group and metric, and paired differences."""
    sides: Sequence[Side]
    """Image folders that are there."""
    gone: int
    """Image folders that were measured and are there no more."""
    erasures: Sequence[Erasure]
    figures: Sequence[Figure]
    outdated: int = 0
    """Records left out: the same was measured again later, or their images have been replaced."""
    apart: Sequence[str] = ()
    """Folders in it that have reports of their own: results of plans and audits."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """The plan, if there is one."""
    worst: Sequence[Mapping[str, Any]] = ()
    """Images in which attacks brought targets back, with their ``folder``; of each row and attack the worst first."""
    audit: Mapping[str, Any] = field(default_factory=dict)
    """What an audit asked and found, if it is one."""

    def values(self, name: str) -> list[str]:
        """What the records say of ``name`` (``model``, or something of their provenance), each once."""
        said = [r.get(name) or r["provenance"].get(name) for r in self.records]
        return list(dict.fromkeys(str(value) for value in said if value))


def files_below(folder: Path, pattern: str, without: Sequence[Path] = ()) -> list[Path]:
    """Files in a folder, its folders and theirs; none of hidden ones, nor of those ``without`` which it is read."""
    files = [file for depth in ("", "*/", "*/*/") for file in sorted(folder.glob(depth + pattern))]
    files = [file for file in files if not any(file.is_relative_to(other) for other in without)]
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def apart_below(folder: Path) -> list[Path]:
    """Folders below a folder that hold the results of a plan or an audit, and so have a report of their own."""
    return sorted({f.parent for name in (PLAN, AUDIT) for f in files_below(folder, name) if f.parent != folder})


def figures_below(folder: Path, without: Sequence[Path] = ()) -> list[Figure]:
    """The figures that analyses and plans left in a folder; see `files_below`.

    Raises:
        ExpungeError: if one is damaged.
    """
    files = [file for file in files_below(folder, "*.json", without) if file.parent.name == FIGURES]
    return [Figure.from_json(read_json(file)) for file in files]


def erasures(records: Sequence[Mapping[str, Any]]) -> list[Erasure]:
    """What was removed by what, a row each, over splits and training seeds; of records that say which row they are of."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["provenance"]["edits"] and group_of(record["provenance"]).kind != "key":
            by_method.setdefault(record["provenance"]["method"], []).append(record)
    return [_erasure(method, own) for method, own in by_method.items()]


def _erasure(method: str, records: Sequence[Mapping[str, Any]]) -> Erasure:
    first = records[0]
    knowledge, made_by = first["knowledge"], first["provenance"]["made_by"]
    return Erasure(
        method=method,
        eraser=str(first["eraser"] or ""),
        settings=made_by[-1]["settings"] if made_by else {},
        targets={r["provenance"]["split"]: r["knowledge"]["targets"] for r in records},
        retain=knowledge["retain"],
        anchors=list(dict.fromkeys(anchor for anchor in knowledge["anchors"] if anchor)),
        knowledge=knowledge,
        seeds=sorted({int(r["seed"]) for r in records}),
        edits=list(dict.fromkeys(id_ for r in records for id_ in r["provenance"]["edits"])),
    )
