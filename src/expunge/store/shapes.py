"""What JSON must look like to be what expunge wrote: so that no reader stumbles over a list where a word should be."""

from typing import Any

from expunge.core.errors import ExpungeError

COST = {"forward": int, "trained": int}
PROVENANCE = {
    "eraser": str,
    "settings": dict,
    "targets": [str],
    "anchors": [str | None],
    "retain": [str],
    "model": str,
    "family": str,
    "seed": int,
    "cost": COST,
    "seconds": int | float,
}
HEADER = {"id": str, "kind": str, "fields": dict, "requires": [str], "provenance": dict | None}
"""Of an edit file."""
RUN = {
    "model": str,
    "edits": [{"id": str, "provenance": dict | None}],
    "split": str,
    "strength": int | float | list,
    "cost": COST,
}
"""Of an image folder."""
RECORD = {
    "metric": str,
    "value": int | float,
    "low": int | float,
    "high": int | float,
    "n": int,
    "subject": str,
    "eraser": str | None,
    "concepts": [str],
    "model": str,
    "seed": int,
    "knowledge": {"targets": [str], "anchors": [str | None], "retain": [str]},
    "provenance": {
        "edits": [str],
        "made_by": [{"eraser": str, "settings": dict, "cost": COST, "seconds": int | float}],
    },
}

SUMMARY_ROW = {"method": str, "group": str, "metric": str}
"""Of every row of a summary."""
NUMBER = {"value": int | float, "low": int | float, "high": int | float, "n": int}
"""Of what a row of a summary with an interval has beside."""
WORST_IMAGE = {
    "method": str,
    "attack": str,
    "images": str,
    "label": str,
    "number": int,
    "sure": int | float | None,
}
"""Of a line about an image in which an attack brought a target back."""


def check_shape(what: str, value: Any, shape: Any) -> None:
    """Refuse a value that is not of a ``shape``: a type, a list of one shape, or an object with at least these names.

    Raises:
        ExpungeError: naming the part that is wrong.
    """
    if isinstance(shape, dict):
        _check_kind(what, value, dict)
        for name, inner in shape.items():
            if name not in value:
                raise ExpungeError(f"{what} has no '{name}': expected what expunge writes")
            check_shape(f"{what} with '{name}'", value[name], inner)
    elif isinstance(shape, list):
        _check_kind(what, value, list)
        for part in value:
            check_shape(what, part, shape[0])
    else:
        _check_kind(what, value, shape)


def _check_kind(what: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        name = getattr(kind, "__name__", str(kind))
        raise ExpungeError(f"{what} is {str(value)[:60]!r}: expected {name}, as expunge writes it")
