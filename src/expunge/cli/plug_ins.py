"""The one way from a command to a plug-in: `expunge COMMAND NAME …`, its settings beside the command's own options."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from expunge.cli.parsing import built, parsed
from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.settings.described import Group, described

T = TypeVar("T")


def called(kind: str, cls: type[T], argv: Sequence[str], command: str) -> tuple[str, T, dict[str, Any]]:
    """The plug-in of a ``kind`` that ``argv`` begins with: its name, the command's options, and its settings.

    Of the settings there are those that were given, nested ones in tables.

    Raises:
        ExpungeError: for an unknown plug-in, option or setting, or a value that is none.
    """
    name, *rest = argv
    options = described(cls.__module__, cls.__name__)
    given = parsed(options, settings_beside(options, kind, name), rest, f"expunge {command} {name}")
    return name, built(cls, given.options), given.settings


def settings_of(kind: str, name: str) -> list[Group]:
    """The settings of a plug-in, read without importing it.

    Raises:
        ExpungeError: if there is none of this name, or it cannot be used.
    """
    entry = Catalog(kind).entry(name)
    if entry.problem:
        raise ExpungeError(f"'{name}' cannot be used: {entry.problem}")
    return described(entry.module, entry.class_name)


def settings_beside(options: Sequence[Group], kind: str, name: str) -> list[Group]:
    """`settings_of` a plug-in, for a command with ``options``: a flag that both have is the command's alone.

    The setting's begins with the plug-in's name: `expunge attack image-to-image` has ``--strength``, of edits, and
    ``--image-to-image-strength``.
    """
    own = [option for group in options for option in group.options if not option.positional]
    taken = {flag for option in own for flag in (option.flag, option.short) if flag}
    return [
        group._replace(options=tuple(o._replace(of=name) if o.flag in taken else o for o in group.options))
        for group in settings_of(kind, name)
    ]


def in_effect(preset: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    """What of a preset stands in a plug-in's settings: options go over it."""
    from dataclasses import asdict

    now = json.loads(json.dumps(asdict(settings)))
    whole = {name: {**now[name], **v} if isinstance(v, Mapping) else v for name, v in preset.items()}
    return {name: preset[name] for name, value in whole.items() if now[name] == value}
