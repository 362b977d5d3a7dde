"""What a user is told: one line, naming what was given and what was expected."""

import math
from collections.abc import Iterable, Mapping
from typing import Any


class ExpungeError(Exception):
    """Bad input. The command line prints its one line and exits with code 2."""


class DamagedError(ExpungeError):
    """A file that can be read, and does not hold what it should."""


class ExpungeWarning(UserWarning):
    """Something the user should know about a result; the command line prints its one line."""


def reason(error: BaseException) -> str:
    """The first line of what went wrong elsewhere, for an error of ours."""
    return str(error).strip().split("\n")[0]


def unknown(kind: str, given: str, known: Iterable[str]) -> ExpungeError:
    """The error for a name that is not in a list, with the nearest name that is."""
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.6)
    if near:
        return ExpungeError(f"unknown {kind} '{given}': did you mean '{near[0]}'?")
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return ExpungeError(f"unknown {kind} '{given}': expected one of {shown}")


def check_counts(method: str, **counts: int) -> None:
    """Refuse settings below 1.

    Raises:
        ExpungeError: naming the setting.
    """
    for name, count in counts.items():
        if count < 1:
            raise ExpungeError(f"{method}'s {name} is {count}: expected 1 or more")


def check_positive(method: str, **numbers: float) -> None:
    """Refuse settings that are not positive, finite numbers.

    Raises:
        ExpungeError: naming the setting.
    """
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise ExpungeError(f"{method}'s {name} is {number}: expected a positive number")


def check_not_negative(method: str, **numbers: float) -> None:
    """Refuse settings below zero, and NaN.

    Raises:
        ExpungeError: naming the setting.
    """
    for name, number in numbers.items():
        if not number >= 0:
            raise ExpungeError(f"{method}'s {name} is {number}: expected zero or more")


def check_finite(what: str, value: Any) -> None:
    """Refuse numbers that are NaN or infinite, and whole ones of more than 64 bits, in a value or in what it holds.

    Raises:
        ExpungeError: naming what it is of.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ExpungeError(f"{what} is {value}: expected a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ExpungeError(f"{what} is a whole number of {value.bit_length()} bits: expected one of 64")
    settings = getattr(type(value), "__dataclass_fields__", None)  # `dataclasses` itself takes long to import
    if settings is not None:
        for name in settings:
            check_finite(f"{what}'s {name}", getattr(value, name))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            check_finite(f"{what}'s {name}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_finite(what, inner)


def each_once(what: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """``values``, none of which may be named twice, since it would count twice.

    Raises:
        ExpungeError: naming the one that is.
    """
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise ExpungeError(f"{what} names {value!r} twice: expected each once")
        seen.append(value)
    return tuple(seen)
