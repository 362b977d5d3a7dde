"""Folders of queries: what is asked, and the vectors of learned words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file

from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError
from expunge.core.query import LearnedWord, Query
from expunge.store.atomic import FORMAT, new_folder, parsed, write_json
from expunge.store.edits import load_edit, save_edit
from expunge.store.headers import EDIT
from expunge.store.tensors import read_tensors

QUERIES, WORDS = "queries.json", "words.safetensors"
"""The files of a folder of queries: what is asked, and the vectors of learned words."""


def write_queries(
    path: Path,
    queries: Sequence[Query],
    about: Mapping[str, Any],
    overwrite: bool = False,
    edit: Edit | None = None,
) -> None:
    """Write queries into a new folder: ``queries.json``, the vectors of learned words beside it, and an attack's edit.

    Raises:
        ExpungeError: for a query that starts from an image, which has no place here.
    """
    if any(q.start is not None for q in queries):
        raise ExpungeError("a query that starts from an image cannot be stored: expected queries of words alone")
    words = {q.learned.id: q.learned.vectors for q in queries if q.learned is not None}
    with new_folder(path, overwrite, marker=QUERIES) as folder:
        save_file({name: v.detach().cpu().contiguous() for name, v in words.items()}, folder / WORDS)
        if edit is not None:
            save_edit(edit, folder / EDIT)
        rows = [q.as_json() for q in queries]
        write_json(folder / QUERIES, {"format": FORMAT, "about": dict(about), "queries": rows})


class StoredQueries(NamedTuple):
    """Queries, and how they were found."""

    queries: list[Query]
    about: dict[str, Any]
    edit: Edit | None = None
    """What the attack that found them changed in the model; ``about`` has its id."""


def read_queries(folder: Path) -> StoredQueries:
    """Queries, and how they were found, as `write_queries` wrote them.

    Raises:
        ExpungeError: if there are none, they are damaged, or a learned word or an attack's edit is not what its id says.
    """
    file = folder / QUERIES
    if not file.is_file():
        raise ExpungeError(f"'{folder}' holds no {QUERIES}: expected a folder that `expunge attack` wrote")
    try:
        content = parsed(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
        vectors = read_tensors(folder / WORDS).tensors
        found: list[Query] = []
        for row in content["queries"]:
            told, word = row.pop("learned", None), None
            if told is not None:
                word = LearnedWord(word=told["word"], vectors=vectors[told["id"]])
                if word.id != told["id"]:
                    raise ValueError(f"learned word {told['id']} has other vectors")
            numbers = {
                "seed": int(row.pop("seed")),
                "guidance": float(row.pop("guidance")),
                "steps": int(row.pop("steps")),
            }
            found.append(Query(learned=word, **numbers, **row))
        about = dict(content["about"])
        edit = load_edit(folder / EDIT) if "edit" in about else None
        if edit is not None and edit.id != about["edit"]:
            raise ValueError(f"'{EDIT}' is the edit {edit.id}, not {about['edit']}")
        return StoredQueries(found, about, edit)
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError, OSError) as error:
        raise ExpungeError(f"'{file}' is damaged: expected what `expunge attack` writes ({error})") from error
