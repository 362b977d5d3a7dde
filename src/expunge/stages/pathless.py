"""What leaves this machine names files, and does not say where on it they lie."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

FILES = ("weights", "path", "file")
"""Settings of judges, metrics and attacks whose values may be paths, whatever they look like."""
_FOLDERS = re.compile(r"(?<![\w:/\\.~])(?:file://|~|[A-Za-z]:|\.{1,2})?[/\\][^\s,;()\[\]{}'\"`|]*[/\\]")
"""The folders of an absolute path within words, up to the file's name."""


def pathless(value: Any, name: str = "") -> Any:
    """The value of the setting ``name`` as it may be shown: files by name alone, also in lists, tables and a judge's words."""
    if isinstance(value, Mapping):
        return {key: pathless(one, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [pathless(one, name) for one in value]
    return _shown(value, name) if isinstance(value, str) else value


def without_paths(text: str, settings: Any = None) -> str:
    """Words that may hold values of ``settings``, or paths from a root: both as they may be shown."""
    for value, name in sorted(_strings(settings, ""), key=lambda one: -len(one[0])):
        text = text.replace(value, _shown(value, name)) if value else text
    return _FOLDERS.sub("", text)


def _strings(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """All words among settings, each with what it is called."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _strings(one, str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one, name)
    elif isinstance(value, str):
        yield value, name


def _shown(value: str, name: str) -> str:
    if "://" not in value and (name in FILES or _is_path(value)):
        return (PureWindowsPath(value) if "\\" in value else Path(value)).name or value
    plug_in, _, words = value.partition(":")
    if "=" not in words:
        return _FOLDERS.sub("", value)
    pairs = [word.partition("=") for word in words.split(",")]
    return f"{plug_in}:" + ",".join(f"{key}{equals}{_shown(one, key.strip())}" for key, equals, one in pairs)


def _is_path(value: str) -> bool:
    """Whether a value looks like an absolute path, or is the relative path of what is there."""
    rooted = re.match(r"(?:~|[A-Za-z]:|\.{1,2})?[/\\]", value) is not None
    return rooted or ("/" in value and os.path.exists(value))
