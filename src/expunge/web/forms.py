"""A plug-in's settings as a form: read from its source, with their help, and made of the words that somebody typed."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError, check_finite
from expunge.settings import presets
from expunge.settings.described import REQUIRED, Option, described
from expunge.settings.worded import converted, otherwise, plain, wanted
from expunge.web.served import Served

LONGEST = 10_000
"""Letters that one setting may have at most."""
TRUTHS = {"yes": True, "no": False}


class Field(NamedTuple):
    """One setting, as a form shows it."""

    name: str
    """The names that lead to it, with dots between them."""
    help: str
    """Its docstring, and what it is if nothing is typed."""
    choices: tuple[str, ...]
    """What may be chosen; empty where anything may be typed."""
    several: bool
    """Whether each line is a value of its own."""


def plug_ins(kind: str) -> dict[str, str]:
    """Those of a ``kind`` that can be used, each with a line on what it is."""
    return {name: plain(entry.summary) for name, entry in Catalog(kind).entries().items() if not entry.problem}


def fields(kind: str, name: str) -> list[Field]:
    """The settings of a plug-in.

    Raises:
        ExpungeError: if there is none of this name.
    """
    known = presets.by_kind(kind, name)
    return [_field(option, known) for option in _options(kind, name).values()]


def _options(kind: str, name: str) -> dict[str, Option]:
    entry = Catalog(kind).entry(name)
    if entry.problem:
        raise ExpungeError(f"'{name}' cannot be used: {entry.problem}")
    groups = described(entry.module, entry.class_name)
    return {".".join(option.path): option for group in groups for option in group.options}


def _field(option: Option, known: Mapping[str, Mapping[str, Any]]) -> Field:
    kind = option.kind.name
    choices = tuple(TRUTHS) if kind == "bool" else tuple(map(str, option.kind.of)) if kind == "choice" else ()
    text = plain(option.text)
    if option.default is False:
        text += " (default: no)"
    return Field(".".join(option.path), text + otherwise(option, known), choices, kind == "many")


def settings(kind: str, name: str, words: Mapping[str, str], served: Served) -> dict[str, Any]:
    """The settings that ``words`` give, by the names of fields, in nested tables; nothing of what was left empty.

    Files that they name must lie in the served folder.

    Raises:
        ExpungeError: for a setting that there is not, or a word that is no value of it.
    """
    options, table = _options(kind, name), dict[str, Any]()
    files: Sequence[str] = Catalog(kind).entry(name).literals.get("files", ())
    for path, text in words.items():
        if path not in options:
            raise ExpungeError(f"{name} has no setting {path[:80]!r}: expected one of {', '.join(options)}")
        if text.strip():
            value = _value(f"{name}'s {path}", options[path], text)
            _check_paths(served, path in files or options[path].kind.name == "Path", value)
            at = table
            for above in options[path].path[:-1]:
                at = at.setdefault(above, {})
            at[options[path].path[-1]] = value
    missing = [
        path for path, option in options.items() if option.default is REQUIRED and not words.get(path, "").strip()
    ]
    if missing:
        raise ExpungeError(f"{name}'s {missing[0]} is missing: expected {wanted(options[missing[0]])}")
    return table


def _check_paths(served: Served, is_path: bool, value: Any) -> None:
    """Refuse what leads out of the served folder: a file, or words that may be taken for one.

    Those are a judge's ``weights=`` in words like ``imagenet:weights=FILE``, and whatever is a path by its looks, since some
    settings take a name or a folder (a CLIP's).
    """
    for word in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(word, str):
            continue
        named = [part.partition("=")[2] for part in word.split(",") if "=" in part]
        if is_path or Path(word).is_absolute() or ".." in Path(word).parts or os.path.lexists(served.root / word):
            named.append(word)
        for path in named:
            served.inside(path)


def _value(what: str, option: Option, text: str) -> Any:
    """What somebody typed, as the setting's value."""
    if len(text) > LONGEST:
        raise ExpungeError(f"{what} has {len(text):,} letters: expected at most {LONGEST:,}")
    if option.kind.name == "bool":
        if text not in TRUTHS:
            raise ExpungeError(f"{what} is {text[:80]!r}: expected yes or no")
        return TRUTHS[text]
    several = option.kind.name == "many"
    kind = option.kind.of[0] if several else option.kind
    words = [line for line in text.splitlines() if line.strip()] if several else [text]
    values: list[Any] = []
    for word in words:
        try:
            values.append(converted(kind, word if kind.name == "str" else word.strip()))
        except ValueError as error:
            raise ExpungeError(f"{what} is {word[:80]!r}: expected {wanted(option)}") from error
    check_finite(what, values)
    if None in values:
        raise ExpungeError(f"{what} is None: expected it to be left empty for that")
    return values if several else values[0]
