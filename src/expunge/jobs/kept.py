"""Folders of finished jobs: what is there is believed if it is whole, and made again otherwise.

A result says how many files lie beside it, and their bytes. So a folder that lost files, or has one that was cut off, is told
from a whole one without reading it. What edits and images hold is checked where they are read. What cannot be read now, for
want of a right or by a fault of the disk, is not damaged: it is an error, and nothing is made again.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expunge.core.errors import DamagedError, ExpungeError
from expunge.store import read_json

RESULT = "result.json"
"""The file in a job's folder that says it is done."""
BESIDE = "beside"
"""What a result calls the files that lie beside it; those that expunge wrote earlier do not say."""
EVERY = ("format", "job", "seconds", "cost")
"""What every result says, whichever expunge wrote it."""
FOREIGN = ("Thumbs.db", "desktop.ini")
"""What file managers leave in folders, beside names that begin with a dot."""


def beside(folder: Path) -> dict[str, int]:
    """Files in a job's folder but its result and what is foreign, and their bytes.

    Raises:
        ExpungeError: if one cannot be looked at.
    """
    own = str(folder / RESULT)
    sizes = [_size(file) for file in _files(folder, foreign=False) if file != own]
    there = [size for size in sizes if size is not None]
    return {"files": len(there), "bytes": sum(there)}


def taken(folder: Path) -> int:
    """Bytes of all that is in a folder.

    Raises:
        ExpungeError: if something cannot be looked at.
    """
    return sum(_size(file) or 0 for file in _files(folder, foreign=True))


def read(folder: Path) -> dict[str, Any] | None:
    """The result in a job's folder; None if there is none.

    Raises:
        DamagedError: if it is damaged, or what lies beside it is not what it says.
        ExpungeError: if it cannot be read.
    """
    file = folder / RESULT
    try:
        result = read_json(file)
    except ExpungeError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    lost = [name for name in EVERY if name not in result]
    if lost:
        raise DamagedError(f"'{file}' is damaged: expected it to say its {', '.join(lost)}")
    said, found = result.get(BESIDE), beside(folder) if BESIDE in result else None
    if said != found:
        raise DamagedError(
            f"'{folder}' is damaged: expected {_told(said)} beside {RESULT}, and there are {_told(found)}"
        )
    return result


def whole(folder: Path) -> dict[str, Any] | None:
    """The result in a job's folder; None if there is none, or it is damaged, so that the job is done again.

    Raises:
        ExpungeError: if it cannot be read.
    """
    try:
        return read(folder)
    except DamagedError:
        return None


def damage(folder: Path) -> str:
    """What is wrong with a job's folder that has a result; nothing if it is whole, or there is none.

    Raises:
        ExpungeError: if it cannot be read.
    """
    try:
        read(folder)
    except DamagedError as error:
        return str(error)
    return ""


def remove(folder: Path) -> None:
    """Delete a job's folder, its result first: what a kill in the middle leaves does not count."""
    with contextlib.suppress(OSError):
        (folder / RESULT).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path, *, foreign: bool) -> Iterator[str]:
    """Files in a folder and below it; what is ``foreign`` to expunge only if asked for."""
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        if not foreign:
            folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(place, n) for n in names if foreign or not (n.startswith(".") or n in FOREIGN))


def _size(file: str | Path) -> int | None:
    """Bytes of a file; None if it is not there, since a running job may take it away."""
    try:
        return os.stat(file).st_size
    except OSError as error:
        _unreadable(error)
        return None


def _unreadable(error: OSError) -> None:
    """Say what could not be looked at, unless it is gone.

    Raises:
        ExpungeError: naming it.
    """
    if not isinstance(error, FileNotFoundError):
        raise ExpungeError(f"'{error.filename}' cannot be read: {error.strerror or error}") from error


def _told(files: Any) -> str:
    return f"{files.get('files')} files of {files.get('bytes')} bytes" if isinstance(files, dict) else str(files)
