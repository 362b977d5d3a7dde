"""The report: one HTML file that needs nothing else."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any, final

from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.core.figure import Figure, Series
from expunge.report.album import album
from expunge.report.attacks import WORST, attacks
from expunge.report.caveats import caveats
from expunge.report.figures import svg
from expunge.report.run import Erasure, Run
from expunge.report.sensitive import covered
from expunge.report.tables import Titled, tables
from expunge.report.templating import rendered
from expunge.results.grid import Cell, Table
from expunge.results.meanings import glossary
from expunge.results.overview import overview
from expunge.results.published import sources
from expunge.store.atomic import new_file


@final
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure as the page shows it."""

    title: str
    svg: str
    width: float
    height: float
    """Of the drawing, in units of which its smallest letters have eight."""
    note: str
    covered: bool
    table: Titled | None
    """The numbers behind it; None for heat maps."""


def write(run: Run, out: Path, images: int = 8, blur: Sequence[str] = (), overwrite: bool = False) -> None:
    """Write the report of ``run`` with ``images`` of each concept; those that ``blur`` or the house's list names are covered.

    Raises:
        ExpungeError: if ``out`` exists (unless ``overwrite``), something is damaged, or jinja2 or matplotlib is not installed.
    """
    if images < 0:
        raise ExpungeError(f"{images} images of each concept: expected 0 or more")
    page = rendered(
        "report.html",
        run=run,
        facts=_facts(run),
        verdict=run.audit.get("verdict"),
        left_out=run.audit.get("left_out", {}),
        album=album(run.sides, images, blur),
        attacks=attacks(run, blur, images=min(WORST, 6 * images)),
        tables=tables(run.summary),
        glossary=glossary(row["metric"] for row in run.summary),
        papers=sources(run.summary),
        overview=[_drawn(figure, blur) for figure in overview(run.summary)],
        figures=[_drawn(figure, blur) for figure in run.figures],
        erasures=[(erasure, _described(erasure)) for erasure in run.erasures],
        caveats=caveats(run),
        plan=json.dumps(run.plan, indent=1, ensure_ascii=False) if run.plan else "",
        version=version("expunge"),
    )
    with new_file(out, overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _facts(run: Run) -> dict[str, str]:
    """What was used, in a few words each."""
    sampling = [r["provenance"]["sampling"] for r in run.records if r["provenance"].get("sampling")]
    seeds = [r["n_seeds"] for r in run.records]
    known = {
        "Model": ", ".join(run.values("model")),
        "SHA-256 of its files": ", ".join(run.values("model_sha256")),
        "Judged by": ", ".join(sorted({str(r["provenance"]["settings"].get("judge", "")) for r in run.records} - {""})),
        "Images made in": ", ".join(run.values("dtype")),
        "Sampling": _sampled(sampling[0]) if sampling else "",
        "Part": run.plan.get("part", ", ".join(s for s in run.values("split") if s in ("dev", "test"))),
        "Noise seeds a prompt": f"up to {max(seeds)}" if seeds else "",
        "Numbers": f"{len(run.records):,} records" if run.records else "",
    }
    return {name: str(value) for name, value in known.items() if value}


def _sampled(how: Mapping[str, Any]) -> str:
    """How images were sampled, in a few words."""
    pair = f", true_cfg {how['true_cfg']:g}" if "true_cfg" in how else ""
    return f"{how['steps']} steps, guidance {how['guidance']:g}{pair}"


def _described(erasure: Erasure) -> dict[str, str]:
    """What one row's method was told, did and made."""
    entry = Catalog("erasers").entries().get(erasure.eraser)
    targets = {split: ", ".join(words) for split, words in erasure.targets.items()}
    several = len(targets) > 1
    ignores = entry is not None and entry.literals.get("ignores_retain", False)
    says = {
        "Paper": "" if entry is None else entry.paper + (f", arXiv {entry.arxiv}" if entry.arxiv else ""),
        "Told to remove": "; ".join(f"{split}: {words}" if several else words for split, words in targets.items()),
        "Told to keep": "" if ignores else ", ".join(erasure.retain),
        "Put in its place": ", ".join(erasure.anchors),
        "Asked a judge": ", ".join(erasure.knowledge.get("oracles", [])),
        "Images it had": ", ".join(
            f"{shown['count']} of {name} ({'given' if shown['given'] else 'made by the model'})"
            for name, shown in erasure.knowledge.get("images", {}).items()
        ),
        "Training seeds": ", ".join(map(str, erasure.seeds)),
        "Edits": " ".join(erasure.edits),
        "Settings": json.dumps(erasure.settings, indent=1, ensure_ascii=False),
    }
    return {name: text for name, text in says.items() if text}


def _drawn(figure: Figure, blur: Sequence[str]) -> Drawn:
    titles = [panel.title for panel in figure.panels if panel.image is not None]
    rows = [_point(series, i) for series in figure.series for i in range(len(series.y))]
    used = [any(row[column] for row in rows) for column in range(5)]
    head = ["series", "point", figure.x.label or "x", figure.y.label or "y", "interval"]
    cells = [[Cell(text=text) for text in compress(row, used)] for row in rows]
    numbers = Titled(title=f"Numbers of {figure.title}", table=Table(head=list(compress(head, used)), rows=cells))
    drawn = svg(figure)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0]
    return Drawn(
        title=figure.title,
        svg=drawn,
        width=float(width),
        height=float(height),
        note=figure.note,
        covered=bool(titles) and covered([figure.title, *titles], blur),
        table=numbers if rows else None,
    )


def _point(series: Series, number: int) -> list[str]:
    """One point of a figure in words: its series, its own name, x, y and the limits of y."""
    limits = ""
    if series.low is not None and series.high is not None:
        limits = f"{_number(series.low[number])} to {_number(series.high[number])}"
    label = "" if series.labels is None else series.labels[number]
    return [series.name, label, _number(series.x[number]), _number(series.y[number]), limits]


def _number(value: float | int | str | None) -> str:
    return value if isinstance(value, str) else "–" if value is None else f"{value:.4g}"
