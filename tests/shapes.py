"""Checking types at run time: shapes where a function names some, and the kinds of its arguments alone elsewhere.

jaxtyping's import hook puts `jaxtyping.jaxtyped` on every function of expunge. It binds each call's arguments twice and keeps a
record of its dimensions, which took a fifth of the suite's time, nearly all of it for functions that name no shape.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping

_with_shapes = jaxtyping.jaxtyped


def _names_shapes(annotation: Any) -> bool:
    """Whether an annotation has a shape in it; a quoted one may."""
    if isinstance(annotation, str):
        return True
    if inspect.isclass(annotation):
        return issubclass(annotation, jaxtyping.AbstractArray)
    inside = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    return any(map(_names_shapes, inside))


def _checking(typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that has the types of a function or class checked at each call."""

    def checked(what: Any) -> Any:
        if inspect.isfunction(what) and not any(map(_names_shapes, what.__annotations__.values())):
            return typechecker(what)
        return _with_shapes(what, typechecker=typechecker)

    return checked


def check_shapes_where_named() -> None:
    """Have the import hook do so; to be called before expunge is imported."""
    jaxtyping.jaxtyped = lambda *, typechecker: _checking(typechecker)
