"""Finished measurements for tests, without running any."""

from collections.abc import Sequence
from typing import Any

from expunge.results.finished import Finished, Value
from expunge.results.group import Group


def finished(
    method: str,
    values: Sequence[tuple[str, float] | tuple[str, float, str]],
    *records: dict[str, Any],
    group: str = "set",
    split: str = "v1",
    **more: Any,
) -> Finished:
    """One measurement of the images of a job called after the method, with the same values behind each record."""
    place = {"method": method, "split": split, "seed": 0, "images": method, **more}
    return Finished(
        group=Group.parse(group), records=records, values=[[Value(*value) for value in values]] * len(records), **place
    )
