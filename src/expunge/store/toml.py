"""Plain tables as TOML, of which Python reads but does not write."""

import json
import re
from collections.abc import Mapping
from typing import Any


def toml(content: Mapping[str, Any]) -> str:
    """A table as the text of a TOML file: plain entries and lists first, then tables under their headings.

    Values are words, numbers, truths, and lists and tables of these; there are no dates, and nothing is None.
    """
    return "\n".join(_lines(content, ())) + "\n"


def _lines(table: Mapping[str, Any], above: tuple[str, ...]) -> list[str]:
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(name)} = {_value(value)}" for name, value in plain.items()]
    if above and (lines or not table):
        lines.insert(0, f"\n[{'.'.join(map(_key, above))}]")
    for name, value in table.items():
        if isinstance(value, Mapping):
            lines += _lines(value, (*above, name))
    return lines


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _word(value)
    if isinstance(value, float):
        return repr(value)  # of a finite one, always with a point or an exponent
    return str(int(value))


def _key(name: str) -> str:
    """A name, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _word(name)


def _word(text: str) -> str:
    """A quoted word; what JSON escapes, TOML does alike, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
