"""What people read of settings, and the words that they type for them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.settings.described import REQUIRED, UNKNOWN, Kind, Option

SHOWN = 3
"""Values of a default that are shown, of many."""

WANTED = {
    "int": "a whole number",
    "float": "a number",
    "none": "None",
    "Path": "a path",
    "str": "text",
    "any": "a value",
}
"""What is expected, in words."""


def wanted(option: Option) -> str:
    """What an option expects, in words."""
    return _in_words(option.kind.of[0] if option.kind.name == "many" else option.kind)


def _in_words(kind: Kind) -> str:
    if kind.name == "choice":
        return ("one of " if len(kind.of) > 1 else "") + ", ".join(map(str, kind.of))
    if kind.name == "union":
        return " or ".join(_in_words(one) for one in kind.of)
    return WANTED.get(kind.name, kind.name)


def converted(kind: Kind, word: str) -> Any:
    """A word as a value of a kind.

    Raises:
        ValueError: if it is none.
    """
    if kind.name == "union":
        for one in kind.of:
            try:
                return converted(one, word)
            except ValueError:
                continue
        raise ValueError(word)
    if kind.name in ("choice", "none", "bool"):
        known = {"choice": {str(v): v for v in kind.of}, "none": {"None": None}}.get(
            kind.name, {"True": True, "False": False}
        )
        if word not in known:
            raise ValueError(word)
        return known[word]
    return {"int": int, "float": float, "Path": Path}.get(kind.name, str)(word)


def plain(text: str) -> str:
    """A docstring's text as a terminal shows it: one paragraph, without the marks of reStructuredText."""
    text = re.sub(r"\.\. math::[^\n]*", "", text)
    text = re.sub(r":math:`([^`]*)`", lambda found: _formula(found[1]), text)
    text = re.sub(r":[a-z]+:`([^`]*)`", r"\1", text)
    text = re.sub(r"``([^`]*)``", r"\1", text)
    return " ".join(text.split())


def _formula(tex: str) -> str:
    r"""A short formula without TeX's marks: ``max(cos, 0)`` of ``\max(\mathrm{cos}, 0)``."""
    words = re.sub(r"\\(mathrm|mathbf|text|operatorname|left|right|big|Big)\b", "", tex)
    return " ".join(re.sub(r"\\([a-zA-Z]+)", r"\1", re.sub(r"\\[,;!]|[{}]", "", words)).split())


def shown(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        more = f" and {len(value) - SHOWN} more" if len(value) > SHOWN else ""
        return (" ".join(map(shown, value[:SHOWN])) or "none") + more
    text = str(value)
    return text if re.fullmatch(r"[^\s'\"{}*?$&|<>;()]+", text) else f"'{text}'"


def otherwise(option: Option, presets: Mapping[str, Mapping[str, Any]]) -> str:
    """What an option is if it is not given; by kind of model, where a preset says something else."""
    if option.default is REQUIRED:
        return " (required)"
    said = [] if option.default in (None, False, (), UNKNOWN) else [f"default: {shown(option.default)}"]
    kinds: dict[str, list[str]] = {}
    for kind, table in presets.items():
        value: Any = table
        for name in option.path:
            value = value.get(name, UNKNOWN) if isinstance(value, Mapping) else UNKNOWN
        if value is not UNKNOWN and value != option.default:
            kinds.setdefault(shown(value), []).append(kind)
    said += [f"preset for {', '.join(of)}: {value}" for value, of in kinds.items()]
    return f" ({'; '.join(said)})" if said else ""
