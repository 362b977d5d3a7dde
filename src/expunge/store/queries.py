"""Folders of queries: what is asked, with the vectors of learned words and the images that queries start from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from expunge.core.edit import Edit, not_finite
from expunge.core.errors import ExpungeError
from expunge.core.query import LearnedWord, Query, Start
from expunge.store.atomic import FORMAT, new_folder, parsed, write_json
from expunge.store.edits import load_edit, save_edit
from expunge.store.headers import EDIT
from expunge.store.tensors import read_tensors

QUERIES, WORDS, STARTS = "queries.json", "words.safetensors", "starts.safetensors"
"""The files of a folder of queries: what is asked, the vectors of learned words, and images that queries start from."""


def write_queries(
    path: Path,
    queries: Sequence[Query],
    about: Mapping[str, Any],
    overwrite: bool = False,
    edit: Edit | None = None,
) -> None:
    """Write queries into a new folder: ``queries.json``; beside it vectors of learned words, given images, an attack's edit.

    An image is written bit for bit, pixels or latents, once for all queries that start from it; there is no file of images
    where there are none.

    Raises:
        ExpungeError: if an image is neither pixels nor finite latents, or the folder exists or cannot be written.
    """
    words = {q.learned.id: q.learned.vectors for q in queries if q.learned is not None}
    starts = {q.start.id: q.start.image for q in queries if q.start is not None}
    for name, image in starts.items():
        _check_image(image, f"the image {name} that a query starts from")
    with new_folder(path, overwrite, marker=QUERIES) as folder:
        _save(words, folder / WORDS)
        if starts:
            _save(starts, folder / STARTS)
        if edit is not None:
            save_edit(edit, folder / EDIT)
        rows = [_row(query) for query in queries]
        write_json(folder / QUERIES, {"format": FORMAT, "about": dict(about), "queries": rows})


def _row(query: Query) -> dict[str, Any]:
    """What ``queries.json`` says of a query."""
    if query.start is None:
        return query.as_json()
    return {**query.as_json(), "start": query.start.id}


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, file)


def _check_image(image: Tensor, what: str) -> None:
    """Refuse what no query can start from.

    Raises:
        ExpungeError: naming its shape and type.
    """
    pixels = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[-1] == 3
    latents = image.is_floating_point() and image.ndim == 3 and not_finite({"": image}) is None
    if not (pixels or latents) or not image.numel():
        raise ExpungeError(
            f"{what} is {str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}: expected 8-bit pixels "
            "[H, W, 3], or finite latents [c, h, w]"
        )


class StoredQueries(NamedTuple):
    """Queries, and how they came about."""

    queries: list[Query]
    about: dict[str, Any]
    edit: Edit | None = None
    """What the attack that found them changed in the model; ``about`` has its id."""


def read_queries(folder: Path) -> StoredQueries:
    """Queries, and how they came about, as `write_queries` wrote them.

    Raises:
        ExpungeError: if there are none, they are damaged, or a learned word, an image or an attack's edit is not what its id
            says.
    """
    file = folder / QUERIES
    if not file.is_file():
        raise ExpungeError(f"'{folder}' holds no {QUERIES}: expected a folder that `expunge attack` wrote")
    try:
        content = parsed(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
        rows = content["queries"]
        vectors = read_tensors(folder / WORDS).tensors
        images = read_tensors(folder / STARTS).tensors if any("start" in row for row in rows) else {}
        about = dict(content["about"])
        edit = load_edit(folder / EDIT) if "edit" in about else None
        if edit is not None and edit.id != about["edit"]:
            raise ValueError(f"'{EDIT}' is the edit {edit.id}, not {about['edit']}")
        return StoredQueries([_query(row, vectors, images) for row in rows], about, edit)
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError, OSError) as error:
        raise ExpungeError(f"'{file}' is damaged: expected what `expunge attack` writes ({error})") from error


def _query(row: dict[str, Any], vectors: Mapping[str, Tensor], images: Mapping[str, Tensor]) -> Query:
    """One query, from what ``queries.json`` says of it.

    Raises:
        ValueError: if a learned word or an image is not what its id says; others if the row is damaged.
    """
    word, start = None, None
    if "learned" in row:
        said = row.pop("learned")
        word = LearnedWord(word=said["word"], vectors=vectors[said["id"]])
        if word.id != said["id"]:
            raise ValueError(f"learned word {said['id']} has other vectors")
    if "start" in row:
        name = row.pop("start")
        start = Start(image=images[name], strength=float(row.pop("strength")))
        if start.id != name:
            raise ValueError(f"image {name} has other pixels")
        _check_image(start.image, f"image {name}")
    numbers = {
        "seed": int(row.pop("seed")),
        "guidance": float(row.pop("guidance")),
        "steps": int(row.pop("steps")),
    }
    return Query(learned=word, start=start, **numbers, **row)
