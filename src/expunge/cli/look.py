"""The commands that look something up: show and list."""

import dataclasses
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from expunge.cli.options import Talk, parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Show what an edit file holds and how it was made."""

    file: Positional[Path]
    """An edit.safetensors."""
    json: bool = False
    """Print one JSON object instead of text."""


def show(argv: list[str]) -> None:
    """``expunge show FILE``."""
    options = parse(Show, argv, "expunge show")
    from expunge.store import public_header

    header = public_header(options.file)
    made = header["provenance"] or {}
    rows = {"id": header["id"], "kind": header["kind"], **header["fields"], **made}
    Talk(json=options.json).result(header, "\n".join(f"{k:12} {v}" for k, v in rows.items()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List erasers, attacks, metrics, judges, analyses and concept sets."""

    families: bool = False
    """Show which erasers work on which model families instead."""
    json: bool = False
    """Print one JSON object instead of text."""


def list_(argv: list[str]) -> None:
    """``expunge list``."""
    options = parse(List, argv, "expunge list")
    from expunge.core.catalog import KINDS, Catalog

    if options.families:
        from expunge.stages.erase import families, families_table

        Talk(json=options.json).result(families(), families_table())
        return
    found = {kind: list(Catalog(kind).entries().values()) for kind in KINDS}
    sets = sorted(p.stem for p in (Path(__file__).parent.parent / "testbed" / "concepts").glob("*.toml"))
    content: dict[str, Any] = {
        kind: [{"name": e.name, "class": e.class_name, "paper": e.paper, "arxiv": e.arxiv} for e in entries]
        for kind, entries in found.items()
    }
    lines: list[str] = []
    for kind, entries in found.items():
        lines.append(kind)
        lines += [f"  {e.name:18} {e.summary or '(cannot be used: ' + e.problem + ')'}" for e in entries] or [
            "  none yet"
        ]
    lines += ["concept sets", f"  {', '.join(sets)}"]
    Talk(json=options.json).result({**content, "concept_sets": sets}, "\n".join(lines))
