"""What an image folder says of its images and of what made them, read without torch."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.store import shapes
from expunge.store.atomic import FORMAT, RUN, read_json, read_lines
from expunge.store.shapes import check_shape

ROLES = ("unsafe", "safe")
"""The two sides of a pair of images."""
METADATA = "metadata.jsonl"
"""What says, a line an image, what images were asked to show."""
PICTURES = frozenset(
    [
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
        *(
            ".avif",
            ".avifs",
            ".heic",
            ".heif",
            ".jp2",
            ".jxl",
            ".ppm",
            ".pgm",
            ".pbm",
            ".pnm",
            ".pfm",
            ".tga",
            ".qoi",
            ".ico",
        ),
    ]
)
"""Endings of pictures; that of a kind which this Pillow cannot read is refused when it is read."""


class Listed(NamedTuple):
    """An image in a folder, and what was asked for."""

    path: Path
    prompt: str
    seed: int
    label: str | None
    row: Mapping[str, Any]
    """Its whole line of metadata; empty if there is none."""
    line: str = ""
    """What errors call that line."""


def read_run(folder: Path) -> dict[str, Any]:
    """What made an image folder (``run.json``); an empty object if the folder is somebody else's."""
    file = folder / RUN
    if not file.is_file():
        return {}
    run = read_json(file)
    if run.get("format") != FORMAT:
        raise ExpungeError(
            f"'{file}' has format {run.get('format')!r}: expected {FORMAT}, as `expunge generate` writes it"
        )
    check_shape(f"'{file}'", run, shapes.RUN)
    for edit in run["edits"]:
        if edit["provenance"] is not None:
            check_shape(f"an edit in '{file}'", edit["provenance"], shapes.PROVENANCE)
    return run


def read_listed(folder: Path, role: str | None = None) -> list[Listed]:
    """The images that the ``metadata.jsonl`` of a folder lists; those of a ``role`` in the order of their pairs.

    A folder that tells no roles apart serves any.

    Raises:
        ExpungeError: if it has none, a line is damaged, or a path leads out of the folder.
    """
    file = folder / METADATA
    if not file.is_file():
        raise ExpungeError(f"'{folder}' is not an image folder: expected a metadata.jsonl in it")
    rows = list(enumerate(read_lines(file), 1))
    if role is not None and any("role" in row for _, row in rows):
        rows = sorted((r for r in rows if r[1].get("role") == role), key=lambda r: _pair(file, r[1]))
    if not rows:
        raise ExpungeError(f"'{file}' is empty: expected one line for each image")
    return [_listed(folder, f"'{file}' line {number}", row) for number, row in rows]


def _listed(folder: Path, line: str, row: Mapping[str, Any]) -> Listed:
    """One line of a folder's metadata."""
    try:
        name, prompt, seed, label = str(row["file_name"]), str(row["prompt"]), int(row["seed"]), row.get("label")
        path = (folder / name).resolve()
        there = path.is_file()
        if not isinstance(label, str | None):
            raise ValueError(f"the label {str(label)[:60]!r}")
    except (OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ExpungeError(f"{line} is damaged: expected file_name, prompt and seed ({error})") from error
    if not path.is_relative_to(folder.resolve()):
        raise ExpungeError(f"{line} names '{name}', which leads out of the folder: expected a file in it")
    if not there:
        raise ExpungeError(f"{line} names '{name}', which does not exist")
    return Listed(path, prompt, seed, label, row, line)


def _pair(file: Path, row: Mapping[str, Any]) -> int:
    """The number of the pair that an image is of."""
    number = row.get("pair", 0)
    if not isinstance(number, int):
        raise ExpungeError(f"'{file}' has the pair {str(number)[:60]!r}: expected a whole number")
    return number


def read_any_listed(folder: Path, role: str | None = None) -> list[Listed]:
    """The images of a folder with or without ``metadata.jsonl``; of one that tells roles apart, those of ``role``.

    A warning names folders in it, which are not read.

    Raises:
        ExpungeError: if there is none.
    """
    if (folder / METADATA).is_file():
        return read_listed(folder, role)
    paths = sorted((p for p in folder.glob("*") if p.suffix.lower() in PICTURES), key=lambda p: (p.stem, p.name))
    if not paths:
        raise ExpungeError(
            f"'{folder}' holds no image: expected a folder of .png, .jpg, .webp, .gif, .tiff or such files"
        )
    below = sorted(p.name for p in folder.glob("[!.]*") if p.is_dir())
    if below:
        warnings.warn(f"folders in '{folder}' are not read: {', '.join(below)}", ExpungeWarning, stacklevel=3)
    return [Listed(path, "", 0, None, {}) for path in paths]
