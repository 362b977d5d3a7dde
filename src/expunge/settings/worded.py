"""Words that people type, into values of the kinds that settings have."""

from pathlib import Path
from typing import Any

from expunge.settings.described import Kind, Option

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
