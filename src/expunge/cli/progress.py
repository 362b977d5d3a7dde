"""How far work is: a bar on a terminal, a line now and then elsewhere; and times in words."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import final

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


def duration(seconds: float) -> str:
    """A time in words: ``7.8 s``, ``2 min 5 s``, ``1 h 20 min``."""
    if seconds < 59.95:
        return f"{max(0.0, seconds):.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@final
class Work:
    """How far some work is, and what its rest should take at the pace of what is done."""

    def __init__(self, title: str, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``total`` units are to be done: what an earlier run left finished is not among them. 0: nobody knows how many."""
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
        return f"{self.title}: {self.done:,}{of} {self.unit}, {duration(self._clock() - self._start)} so far{rest}"


@contextlib.contextmanager
def regularly(line: Callable[[], str]) -> Iterator[None]:
    """Write what ``line`` gives to standard error every `EVERY` seconds, however long one piece of work takes."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(EVERY):
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                sys.stderr.write(f"{line()}\n")
                sys.stderr.flush()

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
