"""Whole files or none: what is written takes its name when it is finished."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from expunge.core.errors import ExpungeError

FORMAT = 1
RUN = "run.json"
"""The file in an image folder that says what made it."""
MODEL = "expunge.json"
"""The file in a model folder that says which kind of model it is, and which edits were fused."""


def check_new(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists (unless ``overwrite``) or cannot be written.

    Raises:
        ExpungeError: naming the path.
    """
    if path.exists() and not overwrite:
        raise ExpungeError(f"'{path}' exists already: expected a new path, or --overwrite")
    parent = next(p for p in (path if path.is_dir() else path.parent, *path.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ExpungeError(f"'{path}' cannot be written: expected a place in a writable folder")


@contextmanager
def new_file(path: Path, overwrite: bool = False, mode: int = 0o644) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well."""
    check_new(path, overwrite)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    temporary = Path(name)
    try:
        with _writing(path):
            yield temporary
            temporary.chmod(mode)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, overwrite: bool = False, marker: str = RUN) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its name when the block ends well.

    With ``overwrite`` it replaces an empty folder, or one that holds the file ``marker``, which says that expunge made it;
    anything else is refused.
    """
    check_new(path, overwrite)
    if path.exists():
        ours = path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))
        if not ours or Path.cwd().resolve().is_relative_to(path.resolve()):
            raise ExpungeError(
                f"'{path}' was not made by this command: expected a new path, or one of its own to overwrite"
            )
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        with _writing(path, full_only=True):
            yield temporary
        with _writing(path):
            temporary.chmod(0o755)
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)  # what was to be replaced is the only copy
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _writing(path: Path, full_only: bool = False) -> Iterator[None]:
    """Say in one line which path could not be written; of what else may go wrong inside, only a full disk if ``full_only``."""
    try:
        yield
    except SafetensorError as error:
        raise ExpungeError(f"'{path}' cannot be written: {error}") from error
    except OSError as error:
        if full_only and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ExpungeError(f"'{path}' cannot be written: {error.strerror or error}") from error


# JSON -----------------------------------------------------------------------------------------------------------------
def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ExpungeError: if the file is damaged.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{path}' is damaged: expected one JSON object ({error})") from error


def write_json(path: Path, content: dict[str, Any], overwrite: bool = False) -> None:
    """Write one JSON file."""
    with new_file(path, overwrite) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a ``.jsonl`` file.

    Raises:
        ExpungeError: if there is none, or a line is damaged.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError as error:
        raise ExpungeError(f"no file '{path}': expected JSON Lines") from error
    except OSError as error:
        raise ExpungeError(f"'{path}' cannot be read: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ExpungeError(f"'{path}' line {number} is damaged: expected a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise ExpungeError(f"'{path}' line {number} is damaged: expected a JSON object")
        rows.append(row)
    return rows


def write_lines(path: Path, rows: Iterable[dict[str, Any]], before: str = "") -> None:
    """Write JSON objects, one a line, after the text ``before``; the file is replaced whole or not at all."""
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text(before + "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
