"""Whole files or none: what is written takes its name when it is finished."""

import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from expunge.core.errors import DamagedError, ExpungeError
from expunge.store.locks import claimed, held

FORMAT = 1
RUN = "run.json"
"""The file in an image folder that says what made it."""
MODEL = "expunge.json"
"""The file in a model folder that says which kind of model it is, and which edits were fused."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk answers."""
RESUME = ".resume.json"
"""The file in an unfinished folder that says how far it is, for a run that goes on with it."""


def check_new(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists (unless ``overwrite``) or cannot be written.

    An empty folder does not count that a killed run made for its unfinished one, which lies beside it.

    Raises:
        ExpungeError: naming the path.
    """
    with _writing(path):
        if os.path.lexists(path) and not overwrite and not _half_named(path):
            raise ExpungeError(f"'{path}' exists already: expected a new path, or --overwrite")
        parent = next(p for p in (path if path.is_dir() else path.parent, *path.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ExpungeError(f"'{path}' cannot be written: expected a place in a writable folder")


@contextmanager
def reserved(path: Path, overwrite: bool = False) -> Iterator[None]:
    """Keep ``path`` for this run as long as the block lasts.

    Raises:
        ExpungeError: if it exists (unless ``overwrite``), another run is writing it, or it cannot be written.
    """
    with ExitStack() as stack:
        with _writing(path):
            ours = stack.enter_context(claimed(path, wait=False))
        if not ours:
            raise ExpungeError(f"'{path}' is being written by another run: expected another place, or to wait for it")
        if held(path):
            _mend(path)
        check_new(path, overwrite)
        yield


@contextmanager
def awaited(path: Path) -> Iterator[None]:
    """Keep ``path`` for this run as long as the block lasts, once other runs are done with it.

    Raises:
        ExpungeError: if it cannot be written.
    """
    check_new(path, overwrite=True)
    with ExitStack() as stack:
        with _writing(path):
            stack.enter_context(claimed(path))
        yield


@contextmanager
def new_file(path: Path, overwrite: bool = False, mode: int = 0o644) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well.

    Raises:
        ExpungeError: if it exists (unless ``overwrite``) or cannot be written. What was written whole, and finds that another
            file has come into being, is kept under another name.
    """
    check_new(path, overwrite)
    with ExitStack() as stack:
        with _writing(path):
            stack.enter_context(claimed(path))  # a file is soon written, so others wait
            temporary = _unfinished(path)
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        stack.callback(_removed, temporary)
        with _writing(path):
            yield temporary
            temporary.chmod(mode)
            if overwrite:
                temporary.replace(path)
                return
        _name(temporary, path, _rename_file)


@contextmanager
def new_folder(path: Path, overwrite: bool = False, marker: str = RUN, resume: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its name when the block ends well; ``path`` is kept for it until then.

    With ``overwrite`` it replaces an empty folder, or one that holds the file ``marker``, which says that expunge made it;
    anything else is refused. What a killed run left is deleted; with ``resume`` it is given instead, if it says in `RESUME` how
    far it is. A folder that says so stays for that when the run is interrupted, or ends in an error.

    Raises:
        ExpungeError: as `reserved`. What was written whole, and finds that another folder has come into being, is kept under
            another name.
    """
    with reserved(path, overwrite):
        _check_ours(path, marker)
        with _writing(path):
            temporary = _unfinished(path)
            if not (resume and (temporary / RESUME).is_file()):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(mode=0o700)
        try:
            with _writing(path, full_only=True):
                yield temporary
        except BaseException as error:
            if (temporary / RESUME).is_file():
                error.add_note(
                    f"what is finished of '{path}' is kept, and --resume of the same command goes on with it"
                )
            else:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        temporary.chmod(0o755)
        _name(temporary, path, partial(_rename_folder, marker=marker) if overwrite else _rename_new_folder)
        _removed(path / RESUME)


# taking a name --------------------------------------------------------------------------------------------------------
def _unfinished(path: Path) -> Path:
    """Where something is written before it takes the name ``path``: always the same place, if a lock says whose it is."""
    ours = _partial(path)
    return ours if held(path) else ours.with_name(f"{ours.name}-{secrets.token_hex(4)}")


def _partial(path: Path) -> Path:
    return path.parent / f".{path.name}.partial"


def _removed(file: Path) -> None:
    """Delete a file, if it is there and can be deleted."""
    with suppress(OSError):
        file.unlink()


def _half_named(path: Path) -> bool:
    """Whether a run was killed after it made an empty folder ``path``, and before its unfinished one took that name."""
    return _partial(path).is_dir() and path.is_dir() and not any(path.iterdir())


def _mend(path: Path) -> None:
    """Put right what a run left that was killed while it took the name ``path``."""
    temporary = _unfinished(path)
    old = temporary.with_name(f"{temporary.name}.old")
    with _writing(path):
        if _half_named(path):
            path.rmdir()
        if old.is_dir() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _check_ours(path: Path, marker: str) -> None:
    """Refuse to replace a folder that expunge did not make."""
    if os.path.lexists(path):
        ours = path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))
        if not ours or Path.cwd().resolve().is_relative_to(path.resolve()):
            raise ExpungeError(
                f"'{path}' was not made by this command: expected a new path, or one of its own to overwrite"
            )


def _name(temporary: Path, path: Path, rename: Callable[[Path, Path], None]) -> None:
    """Give what is finished its name by ``rename``; where it cannot have it, another, so that nothing is lost.

    Raises:
        ExpungeError: naming where it is then.
    """
    try:
        rename(temporary, path)
    except (OSError, ExpungeError) as error:
        why = "exists by now" if isinstance(error, FileExistsError) else "cannot be replaced"
        kept = _aside(temporary, path)
        raise ExpungeError(f"'{path}' {why}: what was made for it is whole, and in '{kept}'") from error


def _aside(temporary: Path, path: Path) -> Path:
    """A free name for what is finished."""
    for number in range(2, 100):
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            (_rename_new_folder if temporary.is_dir() else _rename_file)(temporary, free)
        except FileExistsError:
            continue
        except OSError:
            return temporary  # which cannot be moved, nor deleted
        return free
    raise ExpungeError(f"'{path}' and 98 more names like it exist: expected a free one")


def _rename_file(temporary: Path, path: Path) -> None:
    """Move a file to a name that nothing has (a rename would replace what has it)."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        temporary.replace(path)


def _rename_new_folder(temporary: Path, path: Path) -> None:
    """Move a folder to a name that nothing has: what is replaced is an empty folder made here."""
    if os.name != "nt":  # where a rename replaces nothing
        path.mkdir()
    try:
        temporary.rename(path)
    except OSError as error:
        raise FileExistsError(f"'{path}' was written to") from error


def _rename_folder(temporary: Path, path: Path, marker: str) -> None:
    """Move a folder to a name that an older one of expunge's may have, which goes once the new one is there."""
    _check_ours(path, marker)
    old = temporary.with_name(f"{temporary.name}.old")
    if path.exists():
        path.rename(old)
    try:
        _rename_new_folder(temporary, path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)  # what was to be replaced is the only copy
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _writing(path: Path, full_only: bool = False) -> Iterator[None]:
    """Say in one line which path could not be written; of what else may go wrong inside, only a full disk if ``full_only``."""
    try:
        yield
    except SafetensorError as error:
        raise ExpungeError(f"'{path}' cannot be written: {error}") from error
    except OSError as error:
        if full_only and error.errno not in FULL:
            raise
        raise ExpungeError(f"'{path}' cannot be written: {error.strerror or error}") from error


# JSON -----------------------------------------------------------------------------------------------------------------
def parsed(text: str) -> Any:
    """JSON without NaN and infinities, which are none.

    Raises:
        ValueError: if it is not JSON, is nested too deeply, or holds one of them.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _finite(digits: str) -> float:
    """A float, which ``1e999`` is not."""
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ExpungeError: if the file cannot be read; a `DamagedError` if it can, and holds something else.
    """
    try:
        content = parsed(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    except OSError as error:
        raise ExpungeError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedError(f"'{path}' is damaged: expected one JSON object ({error})") from error


def write_json(path: Path, content: dict[str, Any], overwrite: bool = False) -> None:
    """Write one JSON file.

    Raises:
        ExpungeError: if a number in it is NaN or infinite, or the file cannot be written.
    """
    text = dumped(path, content, indent=2)
    with new_file(path, overwrite) as temporary:
        temporary.write_text(text + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a ``.jsonl`` file.

    Raises:
        ExpungeError: if there is none, or a line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise ExpungeError(f"no file '{path}': expected JSON Lines") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ExpungeError(f"'{path}' cannot be read: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        try:
            row = parsed(line)
        except ValueError as error:
            raise ExpungeError(f"'{path}' line {number} is damaged: expected a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise ExpungeError(f"'{path}' line {number} is damaged: expected a JSON object")
        rows.append(row)
    return rows


def write_lines(
    path: Path, rows: Iterable[dict[str, Any]], before: str = "", overwrite: bool = True, compact: bool = False
) -> None:
    """Write JSON objects, one a line, after the text ``before``; the file is replaced whole or not at all.

    Those that are ``compact`` have no blanks, which are a tenth of many records.

    Raises:
        ExpungeError: if a number in them is NaN or infinite, or the file exists (unless ``overwrite``) or cannot be written.
    """
    text = before + "".join(dumped(path, row, compact=compact) + "\n" for row in rows)
    with new_file(path, overwrite) as temporary:
        temporary.write_text(text)


def dumped(path: Path, content: dict[str, Any], indent: int | None = None, compact: bool = False) -> str:
    """JSON for the file ``path``, ``compact`` without blanks.

    Raises:
        ExpungeError: if a number in it is NaN or infinite.
    """
    try:
        separators = (",", ":") if compact else None
        return json.dumps(content, indent=indent, separators=separators, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise ExpungeError(f"'{path}' would hold a number that is NaN or infinite: expected finite ones") from error
