"""What a testbed's folder was assembled of: the hash of each file, so that a part of another testbed is refused by name.

Parts of two testbeds may have the same shapes, so shapes alone do not tell them apart. A file is hashed when it is first used.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import final

from expunge.core.digest import sha256
from expunge.core.errors import ExpungeError

MARK = "expunge.json"
"""The file in a testbed's folder that lists the others."""
LIST = "parts"
"""What the list is called there: sha256 by path in the folder."""


def listed(folder: Path) -> dict[str, str]:
    """The list for a folder that has just been assembled: all that is in it, but for the list's own file."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MARK)
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


@final
class Parts:
    """The files of a folder, and what it was assembled of.

    A folder without a list (another model, an export, a testbed of an earlier expunge) is taken as it is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._mark = folder, folder / MARK
        self._listed = self._read()
        self._hashes: dict[Path, str] = {}

    def check(self, files: Iterable[Path]) -> None:
        """Hash files of a folder with a list; large models, which have none, are not read for it.

        Raises:
            ExpungeError: as `sha256`.
        """
        if self._listed is not None:
            for file in files:
                self.sha256(file)

    def _read(self) -> Mapping[str, str] | None:
        if not self._mark.is_file():
            return None
        try:
            given = json.loads(self._mark.read_text(encoding="utf-8")).get(LIST)
        except (AttributeError, OSError, ValueError) as error:
            raise ExpungeError(f"'{self._mark}' is damaged: expected one JSON object ({error})") from error
        if given is not None and not isinstance(given, dict):
            raise ExpungeError(f"'{self._mark}' has no list of {LIST}: expected a sha256 by file")
        return given

    def sha256(self, file: Path) -> str:
        """Hash of a file in the folder, read once.

        Raises:
            ExpungeError: if it is not there, or not the one that the folder was assembled of.
        """
        if file not in self._hashes:
            self._hashes[file] = self._checked(file)
        return self._hashes[file]

    def _checked(self, file: Path) -> str:
        try:
            found = sha256(file)
        except OSError as error:
            raise ExpungeError(f"'{file}' cannot be read: expected a file of the model ({error.strerror})") from error
        if self._listed is None:
            return found
        expected = self._listed.get(file.relative_to(self._folder).as_posix())
        if expected is None:
            raise ExpungeError(f"'{file}' is no part of this testbed: expected a file that '{self._mark}' lists")
        if found != expected:
            raise ExpungeError(
                f"'{file}' is not this testbed's: expected the file of sha256 {str(expected)[:12]} that '{self._mark}' lists, "
                f"and it has {found[:12]}"
            )
        return found
