"""Dataclasses of settings built from layers of plain tables: defaults, then presets, then what a user gave."""

import contextlib
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import ExpungeError, check_finite, unknown


def filled(cls: type, of: str, *layers: Any) -> Any:
    """A dataclass of settings from its defaults and then ``layers``, later ones over earlier ones; nested ones likewise.

    Raises:
        ExpungeError: for a setting that it does not have, or a value of the wrong kind.
    """
    for layer in layers:
        if not isinstance(layer, Mapping):
            raise ExpungeError(f"{of} is {layer!r}: expected a table of settings")
    known = {f.name: f for f in dataclasses.fields(cls)}
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for layer in layers for name in layer):
        if name not in known:
            raise unknown(f"setting of {of}", name, known)
        values = [layer[name] for layer in layers if name in layer]
        make = known[name].default_factory
        inner = None if make is dataclasses.MISSING else make()
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            wrong = [v for v in values if not isinstance(v, Mapping)]
            if wrong:
                raise ExpungeError(f"{of}'s {name} is {wrong[0]!r}: expected settings of its own, as a table")
            merged[name] = filled(type(inner), f"{of}'s {name}", dataclasses.asdict(inner), *values)
        else:
            merged[name] = _checked(f"{of}'s {name}", values[-1], typing.get_type_hints(cls)[name])
    for name, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in merged:
            raise ExpungeError(f"{of} has no '{name}': expected one")
    return cls(**merged)


def _checked(what: str, value: Any, kind: Any) -> Any:
    """``value`` if it is of ``kind`` and finite; a list becomes a tuple, a whole number a float where one is wanted."""
    check_finite(what, value)
    if kind is Any:
        return value
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for one in inside:
            with contextlib.suppress(ExpungeError):
                return _checked(what, value, one)
        raise ExpungeError(f"{what} is {value!r}: expected {kind}")
    if origin is typing.Literal:
        if value not in inside:
            raise unknown(f"{what}", str(value), [str(i) for i in inside])
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ExpungeError(f"{what} is {value!r}: expected a list")
        return tuple(_checked(what, v, inside[0]) for v in value)
    if origin is dict:
        kind = dict
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise ExpungeError(f"{what} is {value!r}: expected {kind.__name__}")
    return value
