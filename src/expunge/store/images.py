"""Image folders in the Hugging Face imagefolder layout, and folders of pictures as users have them."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from expunge.core.errors import ExpungeError
from expunge.core.query import Query, Shot
from expunge.store.atomic import parsed, read_lines, write_lines
from expunge.store.listing import METADATA, ROLES, Listed, read_any_listed, read_listed
from expunge.store.marks import fitted, read_boxes, read_mask
from expunge.store.pixels import read_pixels


def image_name(row: int, query: Query) -> str:
    """File name of the image in a row of the metadata: unique, and readable."""
    words = re.sub(r"[^a-z0-9]+", "-", query.prompt.lower()).strip("-")[:60] or "empty"
    return f"{row:05d}-{words}-{query.seed}.png"


def write_images(
    folder: Path,
    queries: Sequence[Query],
    batches: Iterable[UInt8[Tensor, "b H W 3"]],
    notes: Callable[[int], dict[str, Any]] = lambda row: {},
    first: int = 0,
    on_written: Callable[[int], None] = lambda rows: None,
) -> None:
    """Write images and their ``metadata.jsonl`` (the Hugging Face *imagefolder* layout) into an existing folder.

    ``notes`` gives what else to write in the line of an image that has just come. Rows before ``first`` are there already;
    after each batch ``on_written`` is told how many are.
    """
    row, file = first, folder / "metadata.jsonl"
    there = file.read_text().split("\n")[:first] if first else []
    with file.open("w") as lines:
        lines.writelines(f"{line}\n" for line in there)  # without that of an image that came after them
        for batch in batches:
            for pixels in batch.numpy():
                name = image_name(row, queries[row])
                Image.fromarray(pixels).save(folder / name)
                told = {"file_name": name, **queries[row].as_json(), **notes(row)}
                lines.write(json.dumps(told, allow_nan=False) + "\n")
                row += 1
            lines.flush()
            on_written(row)


def has_rows(folder: Path, rows: int) -> bool:
    """Whether the first ``rows`` of a folder that `write_images` began are there, each with an image that can be read."""
    try:
        lines = (folder / METADATA).read_text().split("\n")[:rows]
        for line in lines:
            read_pixels(folder / str(parsed(line)["file_name"]))
    except (ExpungeError, KeyError, OSError, TypeError, ValueError):
        return False
    return len(lines) == rows


class Entry(NamedTuple):
    """A file below a folder of images, and a line that a ``metadata.jsonl`` has on it."""

    name: str
    """From the folder on."""
    path: Path
    row: dict[str, Any]
    """Empty if there is none."""
    problem: str = ""
    """Why it cannot be opened, if that is known."""


def read_entries(folder: Path) -> list[Entry]:
    """Every file below a folder, by name; once for each line that a ``metadata.jsonl``, its folder's or one above, has on it.

    What cannot be followed is an entry too, with its problem: a line on a file that is not there, a link to a folder.

    Raises:
        ExpungeError: if a line is damaged.
    """
    files: dict[str, str] = {}
    rows: list[tuple[str, dict[str, Any]]] = []

    def closed(error: OSError) -> None:
        files[os.path.relpath(error.filename, folder)] = f"cannot be read: {error.strerror}"

    for path, folders, names in os.walk(folder, onerror=closed):
        inside = os.path.relpath(path, folder)
        links = {name for name in folders if os.path.islink(os.path.join(path, name))}
        files |= {_joined(inside, name): "is a link to a folder" if name in links else "" for name in (*names, *links)}
        if METADATA in names:
            rows += _listed(Path(path) / METADATA, inside)
    listed = [Entry(n, folder / n, row, files.get(n, "is in the metadata, and not in the folder")) for n, row in rows]
    bare = files.keys() - {name for name, _ in rows}
    return sorted([*listed, *(Entry(n, folder / n, {}, files[n]) for n in bare)], key=lambda entry: entry.name)


def _listed(file: Path, inside: str) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a ``metadata.jsonl``, with the names of their files from the outer folder on."""
    rows = read_lines(file)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("file_name"), str):
            raise ExpungeError(f"'{file}' line {number} is damaged: expected a file_name")
    return [(_joined(inside, row["file_name"]), row) for row in rows]


def _joined(inside: str, name: str) -> str:
    return os.path.normpath(os.path.join(inside, name))


def copy_images(folder: Path, names: Sequence[str], target: Path) -> None:
    """Copy files of a folder, and their lines of metadata (or bare ones), into an existing folder."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in read_entries(folder):
        rows.setdefault(entry.name, []).append({**entry.row, "file_name": entry.name})
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    write_lines(target / METADATA, [row for name in names for row in rows[name]])


def roles_in(folder: Path) -> set[str]:
    """The roles that a folder of images tells apart in its ``metadata.jsonl``; none if it has none."""
    file = folder / "metadata.jsonl"
    return {str(row["role"]) for row in read_lines(file) if "role" in row} if file.is_file() else set()


def read_images(folder: Path, role: str | None = None) -> list[Shot]:
    """The images of a folder, as its ``metadata.jsonl`` lists them; those of a ``role`` in the order of their pairs.

    A folder that tells no roles apart serves any.

    Raises:
        ExpungeError: if it has none, a line is damaged, or a path leads out of the folder.
    """
    return [_shot(listed, folder) for listed in read_listed(folder, role)]


def read_any_images(folder: Path, size: tuple[int, int] | None = None, role: str | None = None) -> list[Shot]:
    """The images of a folder with or without ``metadata.jsonl``, cut and scaled to (height, width) if a ``size`` is given.

    Of a folder that tells roles apart, those of ``role``. A warning names folders in it, which are not read.

    Raises:
        ExpungeError: if there is none.
    """
    return [fitted(_shot(listed, folder), size) for listed in read_any_listed(folder, role)]


def _shot(listed: Listed, folder: Path) -> Shot:
    """An image of a folder with its marks."""
    try:
        boxes, mask = read_boxes(listed.row), listed.row.get("mask_file_name")
        masked = None if mask is None else (folder / str(mask)).resolve()
    except (OSError, TypeError, ValueError, OverflowError) as error:
        raise ExpungeError(f"{listed.line} is damaged: expected file_name, prompt and seed ({error})") from error
    if masked is not None and not masked.is_relative_to(folder.resolve()):
        raise ExpungeError(f"{listed.line} names '{mask}', which leads out of the folder: expected a file in it")
    if masked is not None and not masked.is_file():
        raise ExpungeError(f"{listed.line} names '{mask}', which does not exist")
    return Shot(
        path=listed.path,
        pixels=partial(read_pixels, listed.path),
        prompt=listed.prompt,
        seed=listed.seed,
        label=listed.label,
        boxes=boxes,
        mask=None if masked is None else partial(read_mask, masked, listed.path),
    )


def read_pairs(unsafe: Path, safe: Path, size: tuple[int, int] | None = None) -> list[tuple[Shot, Shot]]:
    """Each unsafe image with its safe one, from two folders.

    By file names without endings; or row by row, where names differ and both folders have a ``metadata.jsonl``.

    Raises:
        ExpungeError: if one lacks its other half, is no image, or is not of its other half's size.
    """
    sides = [read_any_images(folder, size, role) for folder, role in zip((unsafe, safe), ROLES, strict=True)]
    stems = [sorted(shot.path.stem for shot in side) for side in sides]
    if stems[0] != stems[1] and all((folder / "metadata.jsonl").is_file() for folder in (unsafe, safe)):
        if len(sides[0]) != len(sides[1]):
            raise ExpungeError(
                f"'{unsafe}' has {len(sides[0])} images and '{safe}' {len(sides[1])}: expected as many, row by row"
            )
        pairs = list(zip(*sides, strict=True))
    else:
        named = [_by_name(shots) for shots in sides]
        for one, other, folder in ((*named, safe), (*reversed(named), unsafe)):
            alone = sorted(set(one) - set(other))
            if alone:
                raise ExpungeError(f"'{one[alone[0]].path}' has no other half: expected '{alone[0]}' in '{folder}'")
        pairs = [(named[0][name], named[1][name]) for name in sorted(named[0])]
    for both in pairs:
        sizes = [_size(shot.path) for shot in both]
        if sizes[0] != sizes[1]:
            raise ExpungeError(
                f"pair '{both[0].path.stem}' is {sizes[0]} unsafe and {sizes[1]} safe: expected two images of one size"
            )
    return pairs


def _by_name(shots: Sequence[Shot]) -> dict[str, Shot]:
    """Images by file name without its ending."""
    by_name: dict[str, Shot] = {}
    for shot in shots:
        if shot.path.stem in by_name:
            raise ExpungeError(
                f"'{shot.path.parent}' has two images called '{shot.path.stem}': expected each name once"
            )
        by_name[shot.path.stem] = shot
    return by_name


def _size(path: Path) -> tuple[int, int]:
    """Height and width of an image."""
    height, width, _ = read_pixels(path).shape
    return height, width
