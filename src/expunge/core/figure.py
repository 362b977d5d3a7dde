"""Figures as plain data: what an analysis or a plan draws, the one schema of their JSON, and what a reader checks of it.

A figure is one JSON object: ``{"format": 1, "title", "note", "kind", ...}``. The kinds ``lines``, ``bars`` and ``scatter`` have
``x`` and ``y`` (``{"label", "log"}``) and ``series`` (``{"name", "x", "y"}``, perhaps with the limits ``low`` and ``high`` of
each y, and ``labels`` of the points). ``heatmaps`` has ``panels`` (``{"title", "values"}``, perhaps over an RGB ``image``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, final, get_args

from expunge.core.errors import ExpungeError, unknown

FORMAT = 1
"""Of a figure's JSON."""
MOST = 1e100
"""What numbers may reach: beyond, scales overflow."""

FigureKind = Literal["lines", "bars", "scatter", "heatmaps"]


@final
@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, group of bars or cloud of points."""

    name: str
    x: Sequence[float | int | str]
    y: Sequence[float | int | None]
    """None is a gap."""
    low: Sequence[float | int | None] | None = None
    high: Sequence[float | int | None] | None = None
    labels: Sequence[str] | None = None
    """A word for each point."""


@final
@dataclass(frozen=True, kw_only=True)
class Panel:
    """One heat map, perhaps over an image."""

    title: str
    values: Sequence[Sequence[float | int | None]]
    """From 0 to 1, row by row."""
    image: Sequence[Sequence[Sequence[int]]] | None = None
    """Rows of [red, green, blue], each from 0 to 255."""


class Axis(NamedTuple):
    """What an axis shows."""

    label: str
    log: bool = False


UNMARKED = Axis("")
"""An axis that needs no words."""


@final
@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a figure shows; the report draws it."""

    title: str
    note: str
    kind: FigureKind
    x: Axis = UNMARKED
    y: Axis = UNMARKED
    series: Sequence[Series] = ()
    panels: Sequence[Panel] = ()

    def __post_init__(self) -> None:
        for series in self.series:
            for name in ("x", "low", "high", "labels"):
                values, what = getattr(series, name), _series_of(self.title, series.name)
                if values is not None and len(values) != len(series.y):
                    raise ExpungeError(f"{what} has {len(values)} {name} and {len(series.y)} y: expected as many")
        if bool(self.panels) != (self.kind == "heatmaps") or bool(self.series) == (self.kind == "heatmaps"):
            raise ExpungeError(f"figure '{self.title}' of kind {self.kind}: expected panels for heatmaps, else series")

    def as_json(self) -> dict[str, Any]:
        """The figure as one JSON object."""
        head = {"format": FORMAT, "title": self.title, "note": self.note, "kind": self.kind}
        if self.kind == "heatmaps":
            return {**head, "panels": [_without_none(panel) for panel in self.panels]}
        axes = {"x": self.x._asdict(), "y": self.y._asdict()}
        return {**head, **axes, "series": [_without_none(series) for series in self.series]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Figure":
        """A figure from its JSON, which anybody may have written.

        Raises:
            ExpungeError: naming what is wrong in it.
        """
        title = str(content.get("title") or "without a title")
        if content.get("format") != FORMAT:
            raise ExpungeError(f"figure '{title}' has format {content.get('format')!r}: expected {FORMAT}")
        kind: Any = str(content.get("kind"))
        if kind not in get_args(FigureKind):
            raise unknown(f"kind of figure '{title}':", kind, get_args(FigureKind))
        part = "panels" if kind == "heatmaps" else "series"
        rows = content.get(part)
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise ExpungeError(f"figure '{title}' of kind {kind} has no list of {part}: expected one or more")
        figure = cls(
            title=title,
            note=str(content.get("note") or ""),
            kind=kind,
            x=_axis(title, "x", content.get("x")),
            y=_axis(title, "y", content.get("y")),
            series=[] if part == "panels" else [_series(title, kind, row) for row in rows],
            panels=[_panel(title, row) for row in rows] if part == "panels" else [],
        )
        figure.check_logs()
        return figure

    def check_logs(self) -> None:
        """Refuse what a logarithmic axis has no place for; limits of intervals may reach zero, and are cut there.

        Raises:
            ExpungeError: naming the first such number.
        """
        for name, axis in (("x", self.x), ("y", self.y)):
            for series in self.series if axis.log else ():
                values = [v for v in getattr(series, name) if v is not None]
                bad = next((v for v in values if isinstance(v, str) or v <= 0), None)
                if bad is not None:
                    raise ExpungeError(
                        f"{_series_of(self.title, series.name)} has {bad!r} on the logarithmic {name} axis: expected "
                        "numbers above 0"
                    )


def _without_none(part: Series | Panel) -> dict[str, Any]:
    return {name: value for name, value in asdict(part).items() if value is not None}


def _series_of(title: str, name: Any) -> str:
    return f"series '{name}' of figure '{title}'"


# reading --------------------------------------------------------------------------------------------------------------
def _axis(title: str, name: str, given: Any) -> Axis:
    if not isinstance(given or {}, dict):
        raise ExpungeError(f"figure '{title}' has the {name} axis {given!r}: expected an object with a label")
    axis = given or {}
    return Axis(label=str(axis.get("label", "")), log=bool(axis.get("log", False)))


def _series(title: str, kind: str, row: Mapping[str, Any]) -> Series:
    what = _series_of(title, row.get("name", ""))
    x, y = row.get("x"), _numbers(what, "y", row.get("y"))
    if not isinstance(x, list) or not y:
        raise ExpungeError(f"{what} has no points: expected lists x and y")
    words = kind == "bars" and all(isinstance(value, str) for value in x)
    limits = {name: None if row.get(name) is None else _numbers(what, name, row[name]) for name in ("low", "high")}
    if (limits["low"] is None) != (limits["high"] is None):
        raise ExpungeError(f"{what} has one of low and high: expected both or neither")
    labels = row.get("labels")
    if not isinstance(labels, list | None):
        raise ExpungeError(f"{what} has labels {str(labels)[:60]!r}: expected a list of words")
    return Series(
        name=str(row.get("name", "")),
        x=x if words else _numbers(what, "x", x),
        y=y,
        low=limits["low"],
        high=limits["high"],
        labels=None if labels is None else [str(label) for label in labels],
    )


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


def _numbers(what: str, name: str, values: Any) -> list[Any]:
    """Numbers as they are; what is missing (null) is a gap, in all but x."""
    if not isinstance(values, list):
        raise ExpungeError(f"{what} has {name} {str(values)[:60]!r}: expected a list of numbers")
    for value in values:
        gap = value is None and name != "x"
        if not gap and (isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST):
            raise ExpungeError(f"{what} has {repr(value)[:60]} among its {name}: expected numbers up to {MOST:g}")
    return values
