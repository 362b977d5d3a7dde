"""What an edit file says of itself, read without torch."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from expunge.core.errors import ExpungeError
from expunge.store.atomic import parsed
from expunge.store.shapes import HEADER, PROVENANCE, check_shape

BARE, EDIT_FORMAT = 1, 2
"""Formats of edit files: in the first, which is still read, the id covers what an edit does, and not what it says of itself."""
EDIT, KEY = "edit.safetensors", "key.safetensors"
"""What an erasure writes: the edit and, where the method makes one, the private key to it."""
CHECK = "check.json"
"""What a look at an edit gave, beside it."""
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "BF16": 2, "F16": 2, "I16": 2, "F32": 4, "I32": 4}
"""Bytes of a number, by the name that safetensors gives its type; 8 for those that are not here."""


class Stored(NamedTuple):
    """A tensor of a file, as its header tells."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it: F32, BF16."""

    @property
    def bytes(self) -> int:
        """What it takes in the file."""
        return math.prod(self.shape) * BYTES.get(self.dtype, 8)


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of an edit file, with a key's secret.

    Raises:
        ExpungeError: if there is no such file, it is damaged, not an edit, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise ExpungeError(f"no edit file '{path}': expected an edit.safetensors written by expunge")
    try:
        with safe_open(path, "np") as opened:
            metadata = opened.metadata() or {}
        header = dict(parsed(metadata["expunge"]))
        version = header["format"]
    except (SafetensorError, OSError) as error:
        raise ExpungeError(f"'{path}' is damaged or no safetensors file: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{path}' is not an edit: expected an expunge header in its metadata") from error
    if version not in (BARE, EDIT_FORMAT):
        newer = isinstance(version, int) and version > EDIT_FORMAT
        raise ExpungeError(
            f"'{path}' has format {version}: expected {BARE} or {EDIT_FORMAT}"
            + (", so update expunge" if newer else "")
        )
    check_shape(f"the header of '{path}'", header, HEADER)
    if header["provenance"] is not None:
        check_shape(f"what '{path}' says of itself", header["provenance"], PROVENANCE)
    return header


def read_stored(path: str | Path) -> list[Stored]:
    """The tensors of a safetensors file, without their numbers.

    Raises:
        ExpungeError: if it is damaged.
    """
    try:
        with safe_open(path, "np") as opened:
            slices = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118  (not a dict)
            return [Stored(name, tuple(s.get_shape()), s.get_dtype()) for name, s in slices]
    except (SafetensorError, OSError) as error:
        raise ExpungeError(f"'{path}' is damaged or no safetensors file: {error}") from error
