"""Locks: one run at a time writes to a place, and a killed run gives it up."""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_held: set[tuple[Path, int]] = set()
LOCKLESS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems without locks answer (some network ones)."""


@contextmanager
def claimed(path: Path, wait: bool = True) -> Iterator[bool]:
    """Keep other runs from ``path``, where the system has file locks; gives whether it is ours.

    A killed process gives its claims up. With ``wait`` it is always ours, sooner or later. What a thread has claimed it may
    claim again. Folders that had to be made for the lock go again, if nothing else came into them.
    """
    if held(path):
        yield True
        return
    created = [parent for parent in path.parents if not parent.exists()]
    file, taken = path.parent / f".{path.name}.lock", False
    try:
        try:
            lock = _locked(file, wait)
        except BlockingIOError:
            lock, taken = None, True
        if lock is None:
            yield not taken
            return
        _held.add(_claim(path))
        try:
            yield True
        finally:
            _held.discard(_claim(path))
            with contextlib.suppress(OSError):
                file.unlink()  # while it is locked: whoever waits for it looks whether it is still the one
            lock.close()
    finally:
        for parent in created:
            with contextlib.suppress(OSError):
                parent.rmdir()


def held(path: Path) -> bool:
    """Whether this thread holds a lock on ``path``, so that whatever other runs left there is a dead run's."""
    return _claim(path) in _held


def _claim(path: Path) -> tuple[Path, int]:
    return path.parent.resolve() / path.name, threading.get_ident()


def _locked(file: Path, wait: bool) -> IO[str] | None:
    """The lock file, opened and locked; None where there are no locks.

    Raises:
        BlockingIOError: if another run has it, and it is not waited for.
    """
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        try:
            opened = file.open("w")
        except FileNotFoundError:  # the folder went again, with another run that had made it
            continue
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(opened.fileno()), file.stat()):
                    return opened
        except BlockingIOError:
            opened.close()
            raise
        except OSError as error:
            opened.close()
            file.unlink(missing_ok=True)
            if error.errno in LOCKLESS:
                return None
            raise
        opened.close()  # whoever had it took its name away: it keeps nobody out any more
