"""Places that fsspec reaches: a folder that machines share, or an object store such as ``s3://bucket/path``.

Each file system has errors of its own, few of them an ``OSError``. Here all but "it is not there" are one line.
"""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from expunge.core.errors import ExpungeError, reason
from expunge.store.atomic import FULL


@final
@dataclass(frozen=True)
class Place:
    """A folder of files by name.

    What it does raises an `ExpungeError` if the place does not answer, or refuses.
    """

    url: str
    """As the user gave it, for messages."""
    files: Any
    """A file system of fsspec."""
    root: str
    """The folder, as ``files`` calls it."""

    def below(self, folder: str) -> "Place":
        """A folder within this one."""
        return replace(self, root=f"{self.root}/{folder}")

    def create(self, name: str, content: bytes) -> bool:
        """Create a file that does not exist; whether it holds ``content`` because of us.

        Args:
            name: of the file.
            content: what no other would write, since a request that was sent again finds its own file.
        """
        # fsspec's own ``pipe_file(mode="create")`` looks first and writes then on file systems of this machine, which two can
        # do at a time
        try:
            with self._told(FileExistsError), self.files.open(self._path(name), "xb") as opened:
                opened.write(content)
        except FileExistsError:
            return self.read(name) == content
        return True

    def read(self, name: str) -> bytes | None:
        """What a small file holds; None if there is none."""
        try:
            with self._told(FileNotFoundError):
                return self.files.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, in the place of another."""
        with self._told():
            self.files.pipe_file(self._path(name), content)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._told(FileNotFoundError):
            self.files.rm_file(self._path(name))

    def put(self, name: str, file: Path) -> None:
        """Copy a file of this machine there."""
        with self._told():
            self.files.put_file(str(file), self._path(name))

    def get(self, name: str, to: Path) -> bool:
        """Copy a file from there to this machine; whether it is there.

        Raises:
            OSError: if this machine's disk is full.
        """
        try:
            with self._told(FileNotFoundError):
                self.files.get_file(self._path(name), str(to))
        except FileNotFoundError:
            return False
        except ExpungeError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL:
                raise error.__cause__ from None
            raise
        return True

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        # fsspec's ``exists`` takes any error for "no" on most file systems
        try:
            with self._told(FileNotFoundError):
                self.files.info(self._path(name))
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """Of what lies in the folder."""
        with self._told():
            return [path.rpartition("/")[2] for path in self.files.ls(self.root, detail=False)]

    def check_creates_once(self) -> None:
        """Try whether it refuses a name that exists, since some servers take no notice of that condition.

        Raises:
            ExpungeError: if it does not.
        """
        probe = f"probe-{secrets.token_hex(8)}"
        first, second = (self.create(probe, content) for content in (b"first", b"second"))
        self.delete(probe)
        if not first or second:
            raise ExpungeError(
                f"'{self.url}' lets a file be created twice: expected a store that refuses it (S3: If-None-Match)"
            )

    @contextlib.contextmanager
    def _told(self, *expected: type[Exception]) -> Iterator[None]:
        """Tell what goes wrong in a line, but for what is ``expected``."""
        try:
            yield
        except expected:
            raise
        except Exception as error:
            raise _unusable(self.url, error) from error

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def _unusable(url: str, error: Exception) -> ExpungeError:
    """What goes wrong at a place, in a line."""
    why = reason(error) or type(error).__name__
    return ExpungeError(f"'{url}' cannot be used ({why}): expected a place that answers and can be written")


@lru_cache(maxsize=8)
def place(url: str) -> Place:
    """That of a URL or path; its listings are never remembered.

    Raises:
        ExpungeError: if there is none, or its package is missing.
    """
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = " (expunge[s3])" if url.startswith("s3") else ""
        raise ExpungeError(f"'{url}' needs a package that is not installed: {reason(error)}{extra}") from error
    except ValueError as error:
        raise ExpungeError(f"'{url}' is no place that fsspec knows: {reason(error)}") from error
    except Exception as error:  # some connect at once
        raise _unusable(url, error) from error
    return Place(url.rstrip("/"), files, root.rstrip("/"))
