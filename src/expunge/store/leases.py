"""Leases: claims across hosts, on any file system that creates a file once (a network folder, an object store).

Locks of files hold on one host alone on some network file systems, and object stores have none. What all of them can do is to
create a name that does not exist, and refuse it to all but one. A claim is such a file, ``NAME.1``: it says who owns it. An
owner lives as long as its own file, its beat, keeps changing. Whoever finds an owner that does not live creates the next
number, ``NAME.2``, which again only one can. Lives are told by the clock of who looks, so clocks need not agree.

An owner that slept for longer than its lease may wake up and go on beside another. So a claim saves work, and what may happen
once only is decided where results are put: that, too, is the creation of a name.
"""

import contextlib
import secrets
import threading
import time
from types import TracebackType
from typing import final

from expunge.core.errors import ExpungeError
from expunge.store.places import Place

SECONDS = 30.0
"""How long an owner may be silent until it counts as gone."""
BEATS = 6
"""How often it is heard in that time."""


@final
class Leases:
    """What one run claims in a folder of claims, which it shares with others, as long as the block lasts."""

    def __init__(self, place: Place, seconds: float = SECONDS) -> None:
        """``place`` is there."""
        self._place, self._seconds = place, seconds
        self._owner = f"owner-{secrets.token_hex(8)}"
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        """What was last read of a file that should change, and when that was first read."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Leases":
        self._write_beat(0)  # before the first claim: who has no beat is gone
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(ExpungeError):  # a place that is gone: its lease ends by itself
            self._place.delete(self._owner)  # so all that it claimed is free at once

    def take(self, name: str) -> bool:
        """Claim ``name``; whether it is ours, now or already.

        Whoever gets it looks again whether what it wants to do was done meanwhile.
        """
        while True:
            number, owner = self._last(name)
            if owner == self._owner:
                return True
            if number and self._lives(f"{name}.{number}", owner):
                return False
            if self._place.create(f"{name}.{number + 1}", self._owner.encode()):
                return True

    def end(self, name: str) -> None:
        """Delete the claims on ``name``, when what they were for is done and can be seen to be."""
        for number in range(1, self._last(name)[0] + 1):
            self._place.delete(f"{name}.{number}")

    def _last(self, name: str) -> tuple[int, str]:
        """The highest number that was claimed, 0 for none, and by whom; asked one by one, since listings may be old."""
        number, owner = 0, ""
        while (found := self._place.read(f"{name}.{number + 1}")) is not None:
            number, owner = number + 1, found.decode(errors="replace")
        return number, owner

    def _lives(self, claim: str, owner: str) -> bool:
        """Whether an owner was heard of within its lease; one that has just created its claim has not said its name yet."""
        file = owner or claim
        beat, now = self._place.read(file), time.monotonic()
        if beat is None:
            return False
        before, since = self._seen.get(file, (None, now))
        if beat != before:
            self._seen[file] = beat, now
            return True
        if now - since < self._seconds:
            return True
        if owner:
            self._place.delete(owner)  # others need not wait, too; if it only slept, it comes back
        return False

    def _beat(self) -> None:
        count = 0
        while not self._done.wait(self._seconds / BEATS):
            count += 1
            try:
                self._write_beat(count)
            except ExpungeError:  # a network that is gone for a moment; next time
                continue

    def _write_beat(self, count: int) -> None:
        """Say that we live."""
        self._place.write(self._owner, f"{self._owner} {count}".encode())
