"""How commands report: results on standard output, what begins and how far it is on standard error."""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from expunge.cli import progress
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.record import Record


class Reporting(NamedTuple):  # no dataclass, whose import would take longer than all of `expunge show`
    """How to report."""

    json: bool = False
    """Print one JSON object instead of text."""
    quiet: bool = False
    """Print nothing but errors and warnings."""

    def result(self, content: dict[str, Any], text: str) -> None:
        """Print a result in the form asked for."""
        if self.json:
            try:
                say(json.dumps(content, sort_keys=True, allow_nan=False))
            except ValueError as error:
                raise ExpungeError("a number of the result is NaN or infinite, which JSON has not") from error
        elif not self.quiet:
            say(text)

    def announce(self, line: str) -> None:
        """Say on standard error what begins, unless it would disturb."""
        if not (self.quiet or self.json):
            sys.stderr.write(f"{line}\n")

    def progress(
        self, title: str | Callable[[], str], total: int = 0, unit: str = "", counted: Callable[[], int] | None = None
    ) -> contextlib.AbstractContextManager[Callable[[int], None] | None]:
        """Progress on standard error, unless it would disturb: a bar on a terminal, a line every half minute elsewhere.

        ``total`` units are still to be done (0: nobody knows how many). The function given is told how many more are, unless
        ``counted`` says how many are in all. Without a ``unit`` nothing is counted but time. A ``title`` that changes with the
        work is a function.
        """
        if self.quiet or self.json:
            return contextlib.nullcontext()
        if sys.stderr.isatty():
            return progress.bar(title, total, counted)
        return progress.regular_lines(title, total, unit, counted)


def say(text: str) -> None:
    """A line of result on standard output."""
    sys.stdout.write(text + "\n")


def settings_line(settings: Mapping[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def record_line(record: "Record") -> str:
    """A record in a line."""
    limits = f"[{record.low:.1f}, {record.high:.1f}]"
    return f"{record.metric:28} {record.value:6.1f} {record.unit} {limits}  n = {record.n}"
