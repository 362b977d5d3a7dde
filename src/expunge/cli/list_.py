"""`expunge list`: what there is to use."""

from pathlib import Path
from typing import Any, NamedTuple

from expunge.cli import help as texts
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting


class List(NamedTuple):
    """List erasers, attacks, metrics, judges, analyses and concept sets."""

    families: bool = False
    """Show which erasers work on which model families instead."""
    json: bool = False
    """Print one JSON object instead of text."""


def list_(argv: list[str]) -> None:
    """``expunge list``."""
    options = parse(List, argv, "expunge list")
    reporting = Reporting(json=options.json)
    if options.families:
        from expunge.cli.families import families, table

        reporting.result(families(), table())
        return
    from expunge.core.catalog import KINDS, Catalog

    entries = {kind: list(Catalog(kind).entries().values()) for kind in KINDS}
    sets = sorted(p.stem for p in (Path(__file__).parent.parent / "testbed" / "concepts").glob("*.toml"))
    content: dict[str, Any] = {
        kind: [{"name": e.name, "class": e.class_name, "paper": e.paper, "arxiv": e.arxiv} for e in found]
        for kind, found in entries.items()
    }
    lines: list[str] = []
    for kind, found in entries.items():
        lines += [
            kind,
            texts.listing((e.name, e.summary or f"(cannot be used: {e.problem})") for e in found) or "  none yet",
        ]
    lines += ["concept sets", f"  {', '.join(sets)}"]
    reporting.result({**content, "concept_sets": sets}, "\n".join(lines))
