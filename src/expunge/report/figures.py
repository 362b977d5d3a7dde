"""Figures drawn as SVG; what one holds is `core.figure`'s matter."""

import hashlib
import html
import io
import json
import math
import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ExpungeError
from expunge.core.figure import Figure, Series
from expunge.store import new_file, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LEGEND, BESIDE = 90, 8
"""Letters that fit below a figure, and what the sign of a series takes of them."""
INK = "#010203"
"""Drawn with this, and then named ``currentColor``, text and axes take the colour of the page around them."""
COLOURS = ("#3a86c8", "#e07b39", "#2a9d74", "#c8507e", "#8a6fd1", "#b08d1e", "#4f9aa3", "#8b8f98")
"""Told apart on light and on dark, and by most colour-blind readers; markers and dashes differ too."""
MARKERS, DASHES = "os^DvPX*", ("-", "--", "-.", ":")
PANELS_A_ROW, TICKS = 4, 10


def draw(file: Path, out: Path, overwrite: bool = False) -> None:
    """Write a figure's JSON as an SVG file.

    Raises:
        ExpungeError: if ``file`` is no figure, or ``out`` exists (unless ``overwrite``) or cannot be written.
    """
    drawn = svg(Figure.from_json(read_json(file)))
    with new_file(out, overwrite) as temporary:
        temporary.write_text(drawn + "\n")


def svg(figure: Figure) -> str:
    """The figure as an SVG element; the same figure gives the same text.

    Its text is text, in the colour and the fonts of the page it stands in, and its ids are its own.

    Raises:
        ExpungeError: if a logarithmic axis has no place for a number, or matplotlib is not installed.
    """
    figure.check_logs()
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ExpungeError("figures need matplotlib: expected `pip install 'expunge[report]'`") from error
    salt = hashlib.sha256(json.dumps(figure.as_json(), sort_keys=True).encode()).hexdigest()[:12]
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,  # a prompt may hold dollars
        "font.size": 10,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
    }
    text = io.StringIO()
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(6.4, 3.8), layout="constrained")
        canvas.patch.set_alpha(0)
        canvas.suptitle(figure.title, fontsize=11)
        {"lines": _lines, "bars": _bars, "scatter": _scatter, "heatmaps": _heatmaps}[figure.kind](canvas, figure)
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _for_a_page(text.getvalue(), figure)


def _for_a_page(text: str, figure: Figure) -> str:
    """The element alone, with a name for those who do not see it, and without ids that nothing refers to."""
    body = text[text.index("<svg") :].strip()
    referred = set(re.findall(r"[\"(]#([^\")]+)", body))
    body = re.sub(r" id=\"([^\"]*)\"", lambda match: match[0] if match[1] in referred else "", body)
    body = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", body)
    body = re.sub(r" (?:width|height)=\"[^\"]*pt\"", "", body, count=2).replace(INK, "currentColor")
    name = html.escape(figure.title)
    return body.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def _axes(canvas: "Canvas", figure: Figure) -> "Axes":
    axes = canvas.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_xlabel(figure.x.label)
    axes.set_ylabel(figure.y.label)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _finish(axes: "Axes", figure: Figure) -> None:
    """Scales, and a legend where there is something to tell apart."""
    for axis, scale, drawn in ((figure.x, axes.set_xscale, axes.xaxis), (figure.y, axes.set_yscale, axes.yaxis)):
        if axis.log:
            scale("log")
            drawn.set_major_formatter(lambda value, _: f"{value:g}")
            drawn.set_minor_formatter(lambda value, _: "")
    points = sorted({x for series in figure.series for x in numbers(series.x)}) if figure.x.log else []
    if 0 < len(points) <= TICKS:
        axes.set_xticks(points)  # a power of ten alone says little of k = 1, 10, 100, 200
    if len(figure.series) > 1:
        columns = _columns([len(series.name) for series in figure.series])
        axes.figure.legend(frameon=False, loc="outside lower center", ncols=columns, fontsize=9)


def _columns(lengths: Sequence[int]) -> int:
    """Into how many columns a legend with names of these lengths goes, which fills them one after another."""
    for columns in range(min(len(lengths), 4), 1, -1):
        rows, longer = divmod(len(lengths), columns)
        ends = [0, *accumulate(rows + (i < longer) for i in range(columns))]
        if sum(max(lengths[a:b]) + BESIDE for a, b in pairwise(ends)) <= LEGEND:
            return columns
    return 1


def _lines(canvas: "Canvas", figure: Figure) -> None:
    axes = _axes(canvas, figure)
    for i, series in enumerate(figure.series):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        marker = MARKERS[i % len(MARKERS)] if len(series.x) <= 40 else ""
        x = numbers(series.x)
        axes.plot(x, numbers(series.y), dash, color=colour, marker=marker, markersize=4, label=series.name)
        if series.low is not None and series.high is not None:
            axes.fill_between(x, numbers(series.low), numbers(series.high), color=colour, alpha=0.18, linewidth=0)
    _finish(axes, figure)


def _scatter(canvas: "Canvas", figure: Figure) -> None:
    axes = _axes(canvas, figure)
    for i, series in enumerate(figure.series):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        points = numbers(series.x), numbers(series.y)
        axes.errorbar(
            *points, yerr=_reach(series), fmt=marker, color=colour, markersize=6, linewidth=1.2, label=series.name
        )
        for x, y, label in zip(*points, series.labels or [], strict=False):
            axes.annotate(label, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    _finish(axes, figure)


def _bars(canvas: "Canvas", figure: Figure) -> None:
    axes = _axes(canvas, figure)
    groups = list(dict.fromkeys(x for series in figure.series for x in series.x))
    names = [group for group in groups if isinstance(group, str)]
    words = len(names) == len(groups)
    centre = {group: float(i) if words else float(group) for i, group in enumerate(groups)}
    gaps = [b - a for a, b in pairwise(sorted(centre.values()))]
    width = (0.8 if words else 0.96) * min(gaps, default=1.0) / len(figure.series)
    for i, series in enumerate(figure.series):
        shift = (i - (len(figure.series) - 1) / 2) * width
        at = [centre[x] + shift for x in series.x]
        axes.bar(at, numbers(series.y), width, color=COLOURS[i % len(COLOURS)], label=series.name, yerr=_reach(series),
                 error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2})  # fmt: skip
    if words:
        turned = sum(map(len, names)) > 60
        axes.set_xticks(list(centre.values()), names, rotation=35 if turned else 0, ha="right" if turned else "center")
    axes.grid(visible=False, axis="x")
    _finish(axes, figure)


def _reach(series: Series) -> list[list[float]] | None:
    """How far intervals reach below and above their points."""
    if series.low is None or series.high is None:
        return None
    values = numbers(series.y)
    below = [max(y - low, 0.0) for y, low in zip(values, numbers(series.low), strict=True)]
    return [below, [max(high - y, 0.0) for y, high in zip(values, numbers(series.high), strict=True)]]


def numbers(values: Sequence[Any]) -> list[float]:
    """Numbers for matplotlib, where a gap is NaN."""
    return [math.nan if value is None else float(value) for value in values]


def _heatmaps(canvas: "Canvas", figure: Figure) -> None:
    """Panels on one scale of colours."""
    columns = min(len(figure.panels), PANELS_A_ROW)
    rows = math.ceil(len(figure.panels) / columns)
    canvas.set_size_inches(0.5 + 1.9 * columns, 2.1 * rows)
    values = [v for p in figure.panels for line in p.values for v in numbers(line) if math.isfinite(v)]
    limits = {"vmin": min([0.0, *values]), "vmax": max(values, default=1.0)}
    grid = canvas.subplots(rows, columns, squeeze=False).ravel()
    shown: Any = None
    for axes in grid:
        axes.set_axis_off()
    for axes, panel in zip(grid, figure.panels, strict=False):
        extent = (0, len(panel.values[0]), len(panel.values), 0)
        if panel.image is not None:
            axes.imshow([[[c / 255 for c in pixel] for pixel in line] for line in panel.image], extent=extent)
        veil = 0.6 if panel.image is not None else 1.0
        shown = axes.imshow([numbers(line) for line in panel.values], cmap="magma", alpha=veil, extent=extent, **limits)
        axes.set_title(panel.title, fontsize=9)
    canvas.colorbar(shown, ax=canvas.axes, shrink=0.7, fraction=0.04).outline.set_visible(False)
