"""Figures: JSON that an analysis wrote, drawn as SVG.

A figure is one JSON object: ``{"format": 1, "title", "note", "kind", ...}``. The kinds ``lines``, ``bars`` and ``scatter`` have
``x`` and ``y`` (``{"label", "log"}``) and ``series`` (``{"name", "x", "y"}``, perhaps with the limits ``low`` and ``high`` of
each y, and ``labels`` of the points). ``heatmaps`` has ``panels`` (``{"title", "values"}``, perhaps over an RGB ``image``).
"""

import hashlib
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, final

from expunge.core.errors import ExpungeError, unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

FORMAT = 1
KINDS = ("lines", "bars", "scatter", "heatmaps")
LEGEND, BESIDE = 90, 8
"""Letters that fit below a figure, and what the sign of a series takes of them."""
INK = "#010203"
"""Drawn with this, and then named ``currentColor``, text and axes take the colour of the page around them."""
COLOURS = ("#3a86c8", "#e07b39", "#2a9d74", "#c8507e", "#8a6fd1", "#b08d1e", "#4f9aa3", "#8b8f98")
"""Told apart on light and on dark, and by most colour-blind readers; markers and dashes differ too."""
MARKERS, DASHES = "os^DvPX*", ("-", "--", "-.", ":")
PANELS_A_ROW, TICKS = 4, 10
MOST = 1e100
"""What numbers may reach: beyond, scales overflow."""


@final
@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis."""

    label: str
    log: bool


@final
@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together."""

    name: str
    x: list[Any]
    y: list[float]
    low: list[float] | None
    high: list[float] | None
    labels: list[str] | None


@final
@dataclass(frozen=True, kw_only=True)
class Panel:
    """One heat map."""

    title: str
    values: list[list[float]]
    image: list[list[list[int]]] | None


@final
@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure that was read and found whole."""

    title: str
    note: str
    kind: str
    x: Axis
    y: Axis
    series: list[Series]
    panels: list[Panel]


# reading --------------------------------------------------------------------------------------------------------------
def parsed(content: Mapping[str, Any]) -> Figure:
    """A figure from its JSON.

    Raises:
        ExpungeError: naming what is wrong in it.
    """
    title = str(content.get("title") or "without a title")
    if content.get("format") != FORMAT:
        raise ExpungeError(f"figure '{title}' has format {content.get('format')!r}: expected {FORMAT}")
    kind = str(content.get("kind"))
    if kind not in KINDS:
        raise unknown(f"kind of figure '{title}':", kind, KINDS)
    part = "panels" if kind == "heatmaps" else "series"
    rows = content.get(part)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ExpungeError(f"figure '{title}' of kind {kind} has no list of {part}: expected one or more")
    figure = Figure(
        title=title,
        note=str(content.get("note") or ""),
        kind=kind,
        x=_axis(title, "x", content.get("x")),
        y=_axis(title, "y", content.get("y")),
        series=[] if part == "panels" else [_series(title, kind, row) for row in rows],
        panels=[_panel(title, row) for row in rows] if part == "panels" else [],
    )
    _check_logs(figure)
    return figure


def _check_logs(figure: Figure) -> None:
    """Refuse what a logarithmic axis has no place for; limits of intervals may reach zero, and are cut there."""
    for name, axis in (("x", figure.x), ("y", figure.y)):
        for series in figure.series if axis.log else ():
            bad = next((v for v in getattr(series, name) if isinstance(v, str) or v <= 0), None)
            if bad is not None:
                raise ExpungeError(
                    f"series '{series.name}' of figure '{figure.title}' has {bad!r} on the logarithmic {name} axis: expected "
                    "numbers above 0"
                )


def _axis(title: str, name: str, given: Any) -> Axis:
    if not isinstance(given or {}, dict):
        raise ExpungeError(f"figure '{title}' has the {name} axis {given!r}: expected an object with a label")
    axis = given or {}
    return Axis(label=str(axis.get("label", "")), log=bool(axis.get("log", False)))


def _series(title: str, kind: str, row: Mapping[str, Any]) -> Series:
    what = f"series '{row.get('name', '')}' of figure '{title}'"
    x, y = row.get("x"), _numbers(what, "y", row.get("y"))
    if not isinstance(x, list) or not y:
        raise ExpungeError(f"{what} has no points: expected lists x and y")
    words = kind == "bars" and all(isinstance(v, str) for v in x)
    limits = {k: None if row.get(k) is None else _numbers(what, k, row[k]) for k in ("low", "high")}
    labels = None if row.get("labels") is None else [str(label) for label in row["labels"]]
    series = Series(
        name=str(row.get("name", "")), x=x if words else _numbers(what, "x", x), y=y, **limits, labels=labels
    )
    for name in ("x", "low", "high", "labels"):
        values = getattr(series, name)
        if values is not None and len(values) != len(y):
            raise ExpungeError(f"{what} has {len(values)} {name} and {len(y)} y: expected as many")
    if (series.low is None) != (series.high is None):
        raise ExpungeError(f"{what} has one of low and high: expected both or neither")
    return series


def _panel(title: str, row: Mapping[str, Any]) -> Panel:
    what = f"panel '{row.get('title', '')}' of figure '{title}'"
    values, image = row.get("values"), row.get("image")
    if not isinstance(values, list) or not values:
        raise ExpungeError(f"{what} has no values: expected a list of rows")
    numbers = [_numbers(what, "values", line) for line in values]
    if len({len(line) for line in numbers}) > 1 or not numbers[0]:
        raise ExpungeError(f"{what} has rows of different lengths: expected a rectangle")
    if image is not None and not _is_image(image):
        raise ExpungeError(f"{what} has a damaged image: expected rows of [red, green, blue], each from 0 to 255")
    return Panel(title=str(row.get("title", "")), values=numbers, image=image)


def _is_image(image: Any) -> bool:
    lines = image if isinstance(image, list) and all(isinstance(line, list) for line in image) else []
    pixels = [pixel for line in lines for pixel in line]
    colours = [
        c for p in pixels if isinstance(p, list) and len(p) == 3 for c in p if isinstance(c, int) and 0 <= c <= 255
    ]
    return len({len(line) for line in lines}) == 1 and len(colours) == 3 * len(pixels) > 0


def _numbers(what: str, name: str, values: Any) -> list[float]:
    """Numbers; what is missing (null) is a gap, in all but x."""
    if not isinstance(values, list):
        raise ExpungeError(f"{what} has {name} {str(values)[:60]!r}: expected a list of numbers")
    for value in values:
        gap = value is None and name != "x"
        if not gap and (isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST):
            raise ExpungeError(f"{what} has {repr(value)[:60]} among its {name}: expected numbers up to {MOST:g}")
    return [math.nan if value is None else float(value) for value in values]


# drawing --------------------------------------------------------------------------------------------------------------
def svg(figure: Mapping[str, Any]) -> str:
    """The figure as an SVG element; the same figure gives the same text.

    Its text is text, in the colour and the fonts of the page it stands in, and its ids are its own.

    Raises:
        ExpungeError: if the figure is damaged, or matplotlib is not installed.
    """
    drawn = parsed(figure)
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ExpungeError("figures need matplotlib: expected `pip install 'expunge[report]'`") from error
    salt = hashlib.sha256(json.dumps(figure, sort_keys=True).encode()).hexdigest()[:12]
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
        canvas.suptitle(drawn.title, fontsize=11)
        {"lines": _lines, "bars": _bars, "scatter": _scatter, "heatmaps": _heatmaps}[drawn.kind](canvas, drawn)
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _for_a_page(text.getvalue(), drawn)


def _for_a_page(text: str, figure: Figure) -> str:
    """The element alone, with a name for those who do not see it, and without ids that nothing refers to."""
    body = text[text.index("<svg") :].strip()
    referred = set(re.findall(r"[\"(]#([^\")]+)", body))
    body = re.sub(r" id=\"([^\"]*)\"", lambda found: found[0] if found[1] in referred else "", body)
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
    points = sorted({x for series in figure.series for x in series.x}) if figure.x.log else []
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
        axes.plot(series.x, series.y, dash, color=colour, marker=marker, markersize=4, label=series.name)
        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.18, linewidth=0)
    _finish(axes, figure)


def _scatter(canvas: "Canvas", figure: Figure) -> None:
    axes = _axes(canvas, figure)
    for i, series in enumerate(figure.series):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.errorbar(
            series.x, series.y, yerr=_reach(series), fmt=marker, color=colour, markersize=6, linewidth=1.2,
            label=series.name,
        )  # fmt: skip
        for x, y, label in zip(series.x, series.y, series.labels or [], strict=False):
            axes.annotate(label, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    _finish(axes, figure)


def _bars(canvas: "Canvas", figure: Figure) -> None:
    axes = _axes(canvas, figure)
    names = list(dict.fromkeys(x for series in figure.series for x in series.x))
    words = all(isinstance(name, str) for name in names)
    place = {name: float(i) if words else float(name) for i, name in enumerate(names)}
    gaps = [b - a for a, b in pairwise(sorted(place.values()))]
    width = (0.8 if words else 0.96) * min(gaps, default=1.0) / len(figure.series)
    for i, series in enumerate(figure.series):
        shift = (i - (len(figure.series) - 1) / 2) * width
        at = [place[x] + shift for x in series.x]
        axes.bar(at, series.y, width, color=COLOURS[i % len(COLOURS)], label=series.name, yerr=_reach(series),
                 error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2})  # fmt: skip
    if words:
        turned = sum(map(len, names)) > 60
        axes.set_xticks(list(place.values()), names, rotation=35 if turned else 0, ha="right" if turned else "center")
    axes.grid(visible=False, axis="x")
    _finish(axes, figure)


def _reach(series: Series) -> list[list[float]] | None:
    """How far intervals reach below and above their points."""
    if series.low is None or series.high is None:
        return None
    below = [max(y - low, 0.0) for y, low in zip(series.y, series.low, strict=True)]
    return [below, [max(high - y, 0.0) for y, high in zip(series.y, series.high, strict=True)]]


def _heatmaps(canvas: "Canvas", figure: Figure) -> None:
    """Panels on one scale of colours."""
    columns = min(len(figure.panels), PANELS_A_ROW)
    rows = math.ceil(len(figure.panels) / columns)
    canvas.set_size_inches(0.5 + 1.9 * columns, 2.1 * rows)
    values = [v for p in figure.panels for line in p.values for v in line if math.isfinite(v)]
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
        shown = axes.imshow(panel.values, cmap="magma", alpha=veil, extent=extent, **limits)
        axes.set_title(panel.title, fontsize=9)
    canvas.colorbar(shown, ax=canvas.axes, shrink=0.7, fraction=0.04).outline.set_visible(False)
