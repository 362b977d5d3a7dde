"""Leases: claims across hosts, on any file system that creates a file once (a network folder, an object store).

Locks of files hold on one host alone on some network file systems, and object stores have none. What all of them can do is to
create a name that does not exist, and refuse it to all but one. A claim is such a file, ``NAME.1``: it says who owns it. An
owner lives as long as its own file, its beat, keeps changing. Whoever finds an owner that does not live creates the next
number, ``NAME.2``, which again only one can. Lives are told by the clock of who looks, so clocks need not agree.

An owner that slept for longer than its lease may wake up and go on beside another. So a claim saves work, and what may happen
once only is decided where results are put: that, too, is the creation of a name.
"""

import secrets
import threading
import time
from types import TracebackType
from typing import Any, final

from expunge.core.errors import ExpungeError, reason

SECONDS = 30.0
"""How long an owner may be silent until it counts as gone."""
BEATS = 6
"""How often it is heard in that time."""


def create(files: Any, path: str, content: bytes) -> bool:
    """Create a file that does not exist; whether ``path`` holds ``content`` because of us.

    Args:
        files: a file system of fsspec that can open with ``xb``. (Its own ``pipe_file(mode="create")`` looks first and writes
            then on file systems of this machine, which two can do at a time.)
        path: where, as ``files`` names it.
        content: what no other would write, since a request that was sent again finds its own file.
    """
    try:
        with files.open(path, "xb") as opened:
            opened.write(content)
    except FileExistsError:
        return read(files, path) == content
    return True


def read(files: Any, path: str) -> bytes | None:
    """What a small file holds; None if there is none."""
    try:
        return files.cat_file(path)
    except FileNotFoundError:
        return None


def delete(files: Any, path: str) -> None:
    """Delete a file, if it is there."""
    try:
        files.rm_file(path)
    except FileNotFoundError:
        return


def check_creates_once(files: Any, path: str) -> None:
    """Try whether a file system refuses a name that exists, since some servers take no notice of that condition.

    Raises:
        ExpungeError: if it does not.
    """
    probe = f"{path}/probe-{secrets.token_hex(8)}"
    first, second = (create(files, probe, content) for content in (b"first", b"second"))
    delete(files, probe)
    if not first or second:
        raise ExpungeError(
            f"'{path}' lets a file be created twice: expected a store that refuses it (S3: If-None-Match)"
        )


@final
class Leases:
    """What one run claims in a folder of claims, which it shares with others, as long as the block lasts."""

    def __init__(self, files: Any, root: str, seconds: float = SECONDS) -> None:
        """``files`` is a file system of fsspec, and ``root`` a folder that is there."""
        self._files, self._root, self._seconds = files, root, seconds
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
        delete(self._files, self._path(self._owner))  # so all that it claimed is free at once

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
            if create(self._files, self._path(f"{name}.{number + 1}"), self._owner.encode()):
                return True

    def end(self, name: str) -> None:
        """Delete the claims on ``name``, when what they were for is done and can be seen to be."""
        for number in range(1, self._last(name)[0] + 1):
            delete(self._files, self._path(f"{name}.{number}"))

    def _last(self, name: str) -> tuple[int, str]:
        """The highest number that was claimed, 0 for none, and by whom; asked one by one, since listings may be old."""
        number, owner = 0, ""
        while (found := read(self._files, self._path(f"{name}.{number + 1}"))) is not None:
            number, owner = number + 1, found.decode(errors="replace")
        return number, owner

    def _lives(self, claim: str, owner: str) -> bool:
        """Whether an owner was heard of within its lease; one that has just created its claim has not said its name yet."""
        file = owner or claim
        beat, now = read(self._files, self._path(file)), time.monotonic()
        if beat is None:
            return False
        before, since = self._seen.get(file, (None, now))
        if beat != before:
            self._seen[file] = beat, now
            return True
        if now - since < self._seconds:
            return True
        if owner:
            delete(self._files, self._path(owner))  # others need not wait, too; if it only slept, it comes back
        return False

    def _beat(self) -> None:
        count = 0
        while not self._done.wait(self._seconds / BEATS):
            count += 1
            try:
                self._write_beat(count)
            except Exception:  # a network that is gone for a moment; next time
                continue

    def _write_beat(self, count: int) -> None:
        """Say that we live.

        Raises:
            ExpungeError: if it cannot be written.
        """
        try:
            self._files.pipe_file(self._path(self._owner), f"{self._owner} {count}".encode())
        except OSError as error:
            raise ExpungeError(f"'{self._root}' cannot be written: {reason(error)}") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
