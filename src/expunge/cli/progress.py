"""How far work is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import final

from expunge.core.times import duration

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


def in_words(title: str | Callable[[], str]) -> str:
    """What work is called now."""
    return title if isinstance(title, str) else title()


@final
class Work:
    """How far some work is, and what its rest should take at the pace of what is done."""

    def __init__(
        self, title: str | Callable[[], str], total: int, unit: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``total`` units are to be done (0: nobody knows how many); what an earlier run finished is not among them.

        Without a ``unit`` only time is told. A ``title`` that changes with the work is a function.
        """
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._clock = clock
        self._start = self._last = clock()
        self._first: tuple[float, int] | None = None

    def advance(self, units: int) -> None:
        """So many more are done."""
        if units > 0:
            self.done += units
            self._last = self._clock()
            self._first = self._first or (self._last, self.done)

    def reach(self, units: int) -> None:
        """So many are done in all."""
        self.advance(units - self.done)

    def left(self) -> float | None:
        """Seconds until the end; None while there is nothing to tell them from.

        The pace is that since the first units came, once more have come: before them, a model was loaded.
        """
        if self._first is None or not self.total:
            return None
        begun, before = self._first if self.done > self._first[1] else (self._start, 0)
        pace = (self._last - begun) / (self.done - before)
        return max(0.0, pace * (self.total - self.done) - (self._clock() - self._last))

    def line(self) -> str:
        """Where it stands."""
        of = f" of {self.total:,}" if self.total else ""
        left = self.left()
        rest = "" if left is None else f", about {duration(left)} left"
        count = f"{self.done:,}{of} {self.unit}, " if self.unit else ""
        return f"{in_words(self.title)}: {count}{duration(self._clock() - self._start)} so far{rest}"


@contextlib.contextmanager
def regularly(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do ``act`` every so many seconds beside the work of the block, however long one piece of it takes."""
    over = threading.Event()

    def keep_on() -> None:
        while not over.wait(seconds):
            act()

    beside = threading.Thread(target=keep_on, daemon=True)
    beside.start()
    try:
        yield
    finally:
        over.set()
        beside.join()


def lines(line: Callable[[], str]) -> contextlib.AbstractContextManager[None]:
    """Write what ``line`` gives to standard error every `EVERY` seconds."""

    def tell() -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            sys.stderr.write(f"{line()}\n")
            sys.stderr.flush()

    return regularly(tell, EVERY)


@contextlib.contextmanager
def bar(
    title: str | Callable[[], str], total: int, counted: Callable[[], int] | None
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; a title that changes, and what ``counted`` gives, are looked up twice a second."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as drawn:
        task = drawn.add_task(in_words(title), total=total or None)

        def look() -> None:
            drawn.update(task, description=in_words(title), completed=None if counted is None else counted())

        with regularly(look, 0.5):
            yield lambda n: drawn.advance(task, n) if counted is None else None


@contextlib.contextmanager
def regular_lines(
    title: str | Callable[[], str], total: int, unit: str, counted: Callable[[], int] | None
) -> Iterator[Callable[[int], None]]:
    """Lines where there is no terminal."""
    work = Work(title, total, unit)

    def line() -> str:
        if counted is not None:
            work.reach(counted())
        return work.line()

    with lines(line):
        yield work.advance
