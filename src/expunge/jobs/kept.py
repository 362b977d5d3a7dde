"""Folders of finished jobs: what is there is believed if it is whole, and made again otherwise.

A result says how many files lie beside it, and their bytes. So a folder that lost files, or has one that was cut off, is told
from a whole one without reading it. What edits and images hold is checked where they are read.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError
from expunge.store import read_json

RESULT = "result.json"
"""The file in a job's folder that says it is done."""
BESIDE = "beside"
"""What a result calls the files that lie beside it; those that expunge wrote earlier do not say."""


def beside(folder: Path) -> dict[str, int]:
    """Files in a job's folder but its result, and their bytes."""
    sizes: list[int] = []
    own = str(folder / RESULT)
    for place, _, names in os.walk(folder):
        for file in (os.path.join(place, name) for name in names):
            if file != own:
                with contextlib.suppress(FileNotFoundError):  # a running job may take it away
                    sizes.append(os.stat(file).st_size)
    return {"files": len(sizes), "bytes": sum(sizes)}


def read(folder: Path) -> dict[str, Any] | None:
    """The result in a job's folder; None if there is none.

    Raises:
        ExpungeError: if it is damaged, or what lies beside it is not what it says.
    """
    file = folder / RESULT
    if not file.is_file():
        return None
    result = read_json(file)
    said, found = result.get(BESIDE), beside(folder) if BESIDE in result else None
    if said != found:
        raise ExpungeError(
            f"'{folder}' is damaged: expected {_told(said)} beside {RESULT}, and there are {_told(found)}"
        )
    return result


def whole(folder: Path) -> dict[str, Any] | None:
    """The result in a job's folder; None if there is none, or it is damaged, so that the job is done again."""
    try:
        return read(folder)
    except ExpungeError:
        return None


def damage(folder: Path) -> str:
    """What is wrong with a job's folder that has a result; nothing if it is whole, or there is none."""
    try:
        read(folder)
    except ExpungeError as error:
        return str(error)
    return ""


def remove(folder: Path) -> None:
    """Delete a job's folder, its result first: what a kill in the middle leaves does not count."""
    with contextlib.suppress(OSError):
        (folder / RESULT).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _told(files: Any) -> str:
    return f"{files.get('files')} files of {files.get('bytes')} bytes" if isinstance(files, dict) else str(files)
