"""`expunge show FILE`: what an edit file holds, and how it was made."""

import hashlib
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from expunge.cli.parsing import Positional, parse
from expunge.cli.reporting import Reporting
from expunge.core.times import duration

if TYPE_CHECKING:
    from expunge.store import Stored


class Show(NamedTuple):
    """Show what an edit file holds and how it was made."""

    file: Positional[Path]
    """An edit.safetensors."""
    json: bool = False
    """Print one JSON object instead of text."""


class Line(NamedTuple):
    """A line of a table: a heading if it has no text."""

    name: str
    text: str = ""


def show(argv: list[str]) -> None:
    """``expunge show FILE``."""
    options = parse(Show, argv, "expunge show")
    from expunge.store import CHECK, read_header, read_json, read_stored

    header = _public(read_header(options.file))
    stored = read_stored(options.file)
    beside = options.file.parent / CHECK
    looked = read_json(beside) if beside.is_file() else {}
    if looked.get("edit") != header["id"]:  # of another edit that lay here
        looked = {}
    content = {**header, "tensors": [tensor._asdict() for tensor in stored], "check": looked or None}
    lines = _lines(header, stored, str(looked.get("verdict", "")))
    Reporting(json=options.json).result(content, f"{options.file}\n{_aligned(lines)}")


def _public(value: Any) -> Any:
    """The same without secrets: in the place of a salt stands its hash, which the edit's own provenance has too."""
    if isinstance(value, Mapping):
        salted = {f"{k}_sha256" if k == "salt" else k: v for k, v in value.items()}
        return {k: _sha256(value["salt"]) if k not in value else _public(v) for k, v in salted.items()}
    return [_public(v) for v in value] if isinstance(value, list) else value


def _sha256(secret: Any) -> str:
    return hashlib.sha256(str(secret).encode()).hexdigest()


def _lines(header: Mapping[str, Any], stored: "Sequence[Stored]", verdict: str) -> list[Line]:
    """What a file says, in the order in which somebody who holds it asks."""
    made, fields = dict(header["provenance"] or {}), dict(header["fields"])
    known = (
        "eraser",
        "expunge",
        "targets",
        "anchors",
        "retain",
        "model",
        "family",
        "seed",
        "cost",
        "seconds",
        "settings",
    )
    of = {name: made.pop(name, None) for name in known}
    lines = [
        Line("id", header["id"]),
        Line("kind", header["kind"]),
        Line("verdict", verdict or "none beside it: `expunge erase` writes one when it looks at its edit"),
    ]
    if header["provenance"] is None:
        lines.append(Line("made by", "unknown: the file does not say"))
    else:
        cost = of["cost"] or {}
        spent = cost.get("forward", 0) + 3 * cost.get("trained", 0)
        lines += [
            Line("method", f"{of['eraser']}, by expunge {of['expunge'] or 'of an unknown version'}"),
            Line("targets", _words(of["targets"])),
            Line("anchors", _words(of["anchors"])),
            Line("asked to keep", _words(of["retain"])),
            Line("model", f"{of['model']} ({of['family']})"),
            Line("seed", _words(of["seed"])),
            Line("took", f"{duration(float(of['seconds'] or 0))}, {spent:,} forward-equivalents"),
        ]
    lines.append(Line("made on top of", _words(header["requires"])))
    lines += _section("base", {f"sha256 as {k}": v for k, v in (fields.pop("base_sha256", None) or {}).items()})
    lines += _section("settings", of["settings"] or {})
    lines += [line for name, value in made.items() for line in _section(name, value)]
    lines += _section("holds", fields)
    size = sum(tensor.bytes for tensor in stored)
    lines.append(Line(f"tensors: {len(stored)}, {size / 1e6:.1f} MB"))
    return [*lines, *_alike(stored)]


def _section(name: str, value: Any) -> list[Line]:
    """A value in a line, a table under its name; nothing for what is empty."""
    if value in ({}, [], "", None):
        return []
    if not isinstance(value, Mapping):
        return [Line(name, _words(value))]
    return [Line(name), *(Line(f"  {k}", _words(v)) for k, v in _flat(value))]


def _flat(table: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """The entries of a table and of those in it, with dots in their names."""
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _words(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        parts = [f"({_words(v)})" if isinstance(v, list | Mapping) else _words(v) for v in value]
        return ", ".join(parts) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value) or "''"


def _alike(stored: "Sequence[Stored]") -> list[Line]:
    """Tensors of one form in a line, whichever block they are of."""
    forms = Counter((*map(str, t.shape), t.dtype, re.sub(r"(?<=\.)\d+(?=\.)", "*", t.name)) for t in stored)
    return [
        Line(f"  {n} of {'x'.join(shape) or 'a number'} {dtype}", name) for (*shape, dtype, name), n in forms.items()
    ]


def _aligned(lines: Sequence[Line]) -> str:
    """Names in a column, texts in another, wrapped to the terminal; a name that is too long stands above its text."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    column = 2 + min(24, max(len(line.name) for line in lines if line.text))
    rows: list[str] = []
    for name, text in lines:
        if not text:
            rows.append(name)
            continue
        first, rest = f"{name:{column}}", " " * column
        if len(name) >= column:
            rows.append(name)
            first = rest
        rows.append(textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False))
    return "\n".join(rows)
