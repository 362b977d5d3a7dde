"""The report: one HTML file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any, final

from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.report.album import album
from expunge.report.caveats import caveats
from expunge.report.figures import parsed, svg
from expunge.report.run import Erasure, Run
from expunge.report.sensitive import covered
from expunge.report.tables import Cell, Table, glossary, overview, tables
from expunge.stages import summary as summaries
from expunge.store import new_file

TEMPLATES = Path(__file__).parent / "templates"


@final
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure as the page shows it."""

    svg: str
    note: str
    covered: bool
    table: Table | None
    """The numbers behind it; None for heat maps."""


def write(run: Run, out: Path, images: int = 8, blur: Sequence[str] = (), overwrite: bool = False) -> None:
    """Write the report of ``run`` with ``images`` of each concept; those that ``blur`` or the house's list names are covered.

    Raises:
        ExpungeError: if ``out`` exists (unless ``overwrite``), something is damaged, or jinja2 or matplotlib is not installed.
    """
    if images < 0:
        raise ExpungeError(f"{images} images of each concept: expected 0 or more")
    page = filled(
        "report.html",
        run=run,
        facts=_facts(run),
        album=album(run.sides, images, blur),
        tables=tables(run.summary),
        glossary=glossary(run.summary),
        papers=_papers(run.summary),
        overview=[_drawn(figure, blur) for figure in overview(run.summary)],
        figures=[_drawn(figure, blur) for figure in run.figures],
        erasures=[(erasure, _described(erasure)) for erasure in run.erasures],
        caveats=caveats(run),
        plan=json.dumps(run.plan, indent=1, ensure_ascii=False) if run.plan else "",
        version=version("expunge"),
    )
    with new_file(out, overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")


def filled(template: str, **values: Any) -> str:
    """A page of `templates`; what is not markup by its own is escaped.

    Raises:
        ExpungeError: if jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ExpungeError("pages need jinja2: expected `pip install 'expunge[report]'`") from error
    settings = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(TEMPLATES), **settings).get_template(template).render(values)


def _facts(run: Run) -> dict[str, str]:
    """What was used, in a few words each."""
    sampling = [r["provenance"]["sampling"] for r in run.records if r["provenance"].get("sampling")]
    seeds = [r["n_seeds"] for r in run.records]
    known = {
        "Model": ", ".join(run.values("model")),
        "SHA-256 of its files": ", ".join(run.values("model_sha256")),
        "Judged by": ", ".join(sorted({str(r["provenance"]["settings"].get("judge", "")) for r in run.records} - {""})),
        "Images made in": ", ".join(run.values("dtype")),
        "Sampling": f"{sampling[0]['steps']} steps, guidance {sampling[0]['guidance']:g}" if sampling else "",
        "Part": run.plan.get("part", ", ".join(s for s in run.values("split") if s in ("dev", "test"))),
        "Noise seeds a prompt": f"up to {max(seeds)}" if seeds else "",
        "Numbers": f"{len(run.records):,} records" if run.records else "",
    }
    return {name: str(value) for name, value in known.items() if value}


def _described(erasure: Erasure) -> dict[str, str]:
    """What one row's method was told, did and made."""
    entry = Catalog("erasers").entries().get(erasure.eraser)
    targets = {split: ", ".join(words) for split, words in erasure.targets.items()}
    several = len(targets) > 1
    says = {
        "Paper": "" if entry is None else entry.paper + (f", arXiv {entry.arxiv}" if entry.arxiv else ""),
        "Told to remove": "; ".join(f"{split}: {words}" if several else words for split, words in targets.items()),
        "Told to keep": ", ".join(erasure.retain),
        "Put in its place": ", ".join(erasure.anchors),
        "Asked a judge": ", ".join(erasure.told.get("oracles", [])),
        "Images it had": ", ".join(
            f"{shown['count']} of {name} ({'given' if shown['given'] else 'made by the model'})"
            for name, shown in erasure.told.get("images", {}).items()
        ),
        "Training seeds": ", ".join(map(str, erasure.seeds)),
        "Edits": " ".join(erasure.edits),
        "Settings": json.dumps(erasure.settings, indent=1, ensure_ascii=False),
    }
    return {name: text for name, text in says.items() if text}


def _papers(summary: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Where published figures come from, by row."""
    return summaries.published_words(summaries.numbers(summary))


def _drawn(figure: Mapping[str, Any], blur: Sequence[str]) -> Drawn:
    read = parsed(figure)
    shown = [panel.title for panel in read.panels if panel.image is not None]
    rows = [
        [
            series.name,
            series.labels[i] if series.labels else "",
            _number(x),
            _number(y),
            f"{_number(series.low[i])} to {_number(series.high[i])}" if series.low and series.high else "",
        ]
        for series in read.series
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True))
    ]
    used = [any(row[column] for row in rows) for column in range(5)]
    head = ["series", "point", read.x.label or "x", read.y.label or "y", "interval"]
    table = Table(
        title=f"Numbers of {read.title}",
        note="",
        head=list(compress(head, used)),
        rows=[[Cell(text=text) for text in compress(row, used)] for row in rows],
    )
    return Drawn(
        svg=svg(figure),
        note=read.note,
        covered=bool(shown) and covered([read.title, *shown], blur),
        table=table if rows else None,
    )


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
