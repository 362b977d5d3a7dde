"""Everything that goes to disk and comes back: edits, image folders, concept sets, records."""

import csv
import errno
import json
import math
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.core import lora
from expunge.core.adapter import Adapter
from expunge.core.catalog import Catalog
from expunge.core.concept import ConceptSet, Part
from expunge.core.cost import Cost
from expunge.core.edit import Edit, Guidance, Provenance, Weights
from expunge.core.errors import ExpungeError, reason, unknown
from expunge.core.query import LearnedWord, Query, Shot
from expunge.core.record import Record

FORMAT = 1
EDIT, KEY = "edit.safetensors", "key.safetensors"
"""What an erasure writes: the edit and, where the method makes one, the private key to it."""
RUN = "run.json"
"""The file in an image folder that says what made it."""
QUERIES, WORDS = "queries.json", "words.safetensors"
"""The files of a folder of queries: what is asked, and the vectors of learned words."""
MODEL = "expunge.json"
"""The file in a model folder that says which kind of model it is, and which edits were fused."""


# writing whole files or none ------------------------------------------------------------------------------------------
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


# edits ----------------------------------------------------------------------------------------------------------------
def save_edit(edit: Edit, path: str | Path, overwrite: bool = False) -> None:
    """Write an edit as one safetensors file with a JSON header.

    Raises:
        ExpungeError: if the file exists (unless ``overwrite``) or cannot be written.
    """
    header = {
        "format": FORMAT,
        "kind": edit.kind,
        "id": edit.id,
        "fields": edit.fields(),
        "requires": list(edit.requires),
        "provenance": None if edit.provenance is None else asdict(edit.provenance),
    }
    tensors = {n: t.detach().cpu().contiguous() for n, t in edit.tensors().items()}
    with new_file(Path(path), overwrite, mode=0o600 if edit.private else 0o644) as temporary:
        save_file(tensors, temporary, metadata={"expunge": json.dumps(header, sort_keys=True)})


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of an edit file.

    Raises:
        ExpungeError: if there is no such file, it is damaged, not an edit, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise ExpungeError(f"no edit file '{path}': expected an edit.safetensors written by expunge")
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
        header = dict(json.loads(metadata["expunge"]))
        version = header["format"]
    except (SafetensorError, OSError) as error:
        raise ExpungeError(f"'{path}' is damaged or no safetensors file: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{path}' is not an edit: expected an expunge header in its metadata") from error
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise ExpungeError(
            f"'{path}' has format {version}: expected {FORMAT}" + (", so update expunge" if newer else "")
        )
    absent = {"id", "kind", "fields", "requires", "provenance"} - set(header)
    if absent:
        raise ExpungeError(f"'{path}' has a header without '{absent.pop()}': expected one that expunge wrote")
    return header


def load_edit(path: str | Path) -> Edit:
    """Read an edit, or somebody's LoRA as an adapter without gates.

    Raises:
        ExpungeError: as `read_header`; also if the contents do not match the id in the header, or a LoRA's names are unknown.
    """
    foreign = _lora(Path(path))
    if foreign is not None:
        return foreign
    header = read_header(path)
    try:
        with safe_open(path, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as error:
        raise ExpungeError(f"'{path}' is damaged: {error}") from error
    try:
        edit = _parse(header, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{path}' has a header that expunge does not understand: {error}") from error
    if edit.id != header.get("id"):
        raise ExpungeError(f"'{path}' is damaged: its contents do not match its id {header.get('id')}")
    return edit


def _lora(path: Path) -> Adapter | None:
    """The LoRA in a file that is no edit of expunge's; None if there is none."""
    try:
        with safe_open(path, "pt") as opened:
            if "expunge" in (opened.metadata() or {}):
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys() if "lora" in name}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    return Adapter(lora.factors(tensors)) if tensors else None


def _parse(header: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    provenance = None
    if header["provenance"] is not None:
        provenance = Provenance(**{**header["provenance"], "cost": Cost(**header["provenance"]["cost"])})
    requires = tuple(header["requires"])
    if header["kind"] == "weights":
        return Weights(tensors, requires=requires, provenance=provenance, **header["fields"])
    if header["kind"] == "adapter":
        return Adapter(tensors, requires=requires, provenance=provenance, **header["fields"])
    if header["kind"] != "guidance":
        raise ExpungeError(f"an edit of kind '{header['kind']}': expected weights, adapter or guidance")
    given = dict(header["fields"])
    eraser = Catalog("erasers").load(given.pop("eraser"))
    cls = guidance_class(eraser)
    edit = cls.restore(given, tensors)
    return with_provenance(edit, provenance, requires)


def guidance_class(eraser: type) -> type[Guidance]:
    """The guidance that an eraser's module, or its package, defines."""
    import sys

    module = sys.modules[eraser.__module__]
    ours = (module.__name__, f"{module.__name__}.")
    known = [c for c in vars(module).values() if isinstance(c, type)]
    mine = [c for c in known if c.__module__ == ours[0] or c.__module__.startswith(ours[1])]
    found = [c for c in mine if issubclass(c, Guidance)]
    if len(found) != 1:
        raise ExpungeError(f"{eraser.__name__} defines {len(found)} guidances: expected one")
    return found[0]


def with_provenance(edit: Edit, provenance: Provenance | None, requires: tuple[str, ...] | None = None) -> Edit:
    """``edit`` with its provenance set."""
    object.__setattr__(edit, "provenance", provenance)
    if requires is not None:
        object.__setattr__(edit, "requires", requires)
    return edit


# queries --------------------------------------------------------------------------------------------------------------
def write_queries(path: Path, queries: Sequence[Query], about: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write queries into a new folder: ``queries.json``, and the vectors of learned words beside it.

    Raises:
        ExpungeError: for a query that starts from an image, which has no place here.
    """
    if any(q.start is not None for q in queries):
        raise ExpungeError("a query that starts from an image cannot be stored: expected queries of words alone")
    words = {q.learned.id: q.learned.vectors for q in queries if q.learned is not None}
    with new_folder(path, overwrite, marker=QUERIES) as folder:
        save_file({name: v.detach().cpu().contiguous() for name, v in words.items()}, folder / WORDS)
        rows = [q.as_json() for q in queries]
        write_json(folder / QUERIES, {"format": FORMAT, "about": dict(about), "queries": rows})


class StoredQueries(NamedTuple):
    """Queries, and how they were found."""

    queries: list[Query]
    about: dict[str, Any]


def read_queries(folder: Path) -> StoredQueries:
    """Queries, and how they were found, as `write_queries` wrote them.

    Raises:
        ExpungeError: if there are none, they are damaged, or a learned word is not what its id says.
    """
    file = folder / QUERIES
    if not file.is_file():
        raise ExpungeError(f"'{folder}' holds no {QUERIES}: expected a folder that `expunge attack` wrote")
    try:
        content = json.loads(file.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
        with safe_open(folder / WORDS, "pt") as opened:
            vectors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a dict)
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
        return StoredQueries(found, dict(content["about"]))
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError, OSError) as error:
        raise ExpungeError(f"'{file}' is damaged: expected what `expunge attack` writes ({error})") from error


# image folders --------------------------------------------------------------------------------------------------------
def image_name(row: int, query: Query) -> str:
    """File name of the image in a row of the metadata: unique, and readable."""
    words = re.sub(r"[^a-z0-9]+", "-", query.prompt.lower()).strip("-")[:60] or "empty"
    return f"{row:05d}-{words}-{query.seed}.png"


def write_images(
    folder: Path,
    queries: Sequence[Query],
    batches: Iterable[UInt8[Tensor, "b H W 3"]],
    notes: Callable[[int], dict[str, Any]] = lambda row: {},
) -> None:
    """Write images and their ``metadata.jsonl`` (the Hugging Face *imagefolder* layout) into an existing folder.

    ``notes`` gives what else to write in the line of an image that has just come.
    """
    waiting = enumerate(queries)
    with (folder / "metadata.jsonl").open("w") as lines:
        for batch in batches:
            for pixels in batch.numpy():
                row, query = next(waiting)
                name = image_name(row, query)
                Image.fromarray(pixels).save(folder / name)
                lines.write(json.dumps({"file_name": name, **query.as_json(), **notes(row)}) + "\n")


def copy_images(folder: Path, names: Sequence[str], place: Path) -> None:
    """Copy images of a folder, and their lines of its ``metadata.jsonl`` (or bare ones), into an existing folder."""
    lines = folder / "metadata.jsonl"
    rows = {str(row.get("file_name")): row for row in read_lines(lines)} if lines.is_file() else {}
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, place / name)
    write_lines(place / "metadata.jsonl", [rows.get(name, {"file_name": name}) for name in names])


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


def read_run(folder: Path) -> dict[str, Any]:
    """What made an image folder (``run.json``); an empty object if the folder is somebody else's."""
    file = folder / RUN
    if not file.is_file():
        return {}
    try:
        made = dict(json.loads(file.read_text()))
        if made["format"] != FORMAT or not {"model", "edits", "split", "strength", "cost"} <= set(made):
            raise ValueError("not of this format")
    except (KeyError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{file}' is damaged: expected what `expunge generate` writes ({error})") from error
    return made


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
    file = folder / "metadata.jsonl"
    if not file.is_file():
        raise ExpungeError(f"'{folder}' is not an image folder: expected a metadata.jsonl in it")
    shots: list[Shot] = []
    rows = list(enumerate(read_lines(file), 1))
    if role is not None and any("role" in row for _, row in rows):
        rows = sorted((r for r in rows if r[1].get("role") == role), key=lambda r: int(r[1].get("pair", 0)))
    for number, row in rows:
        try:
            name, prompt, seed, label = str(row["file_name"]), str(row["prompt"]), int(row["seed"]), row.get("label")
            path = (folder / name).resolve()
        except (KeyError, TypeError, ValueError) as error:
            raise ExpungeError(
                f"'{file}' line {number} is damaged: expected file_name, prompt and seed ({error})"
            ) from error
        if not path.is_relative_to(folder.resolve()):
            raise ExpungeError(
                f"'{file}' line {number} names '{name}', which leads out of the folder: expected a file in it"
            )
        if not path.is_file():
            raise ExpungeError(f"'{file}' line {number} names '{name}', which does not exist")
        shots.append(Shot(path=path, pixels=partial(read_pixels, path), prompt=prompt, seed=seed, label=label))
    if not shots:
        raise ExpungeError(f"'{file}' is empty: expected one line for each image")
    return shots


def read_any_images(folder: Path, size: tuple[int, int] | None = None, role: str | None = None) -> list[Shot]:
    """The images of a folder with or without ``metadata.jsonl``, cut and scaled to (height, width) if a ``size`` is given.

    Of a folder that tells roles apart, those of ``role``.

    Raises:
        ExpungeError: if there is none.
    """
    if (folder / "metadata.jsonl").is_file():
        return [replace(shot, pixels=partial(read_pixels, shot.path, size)) for shot in read_images(folder, role)]
    known = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
    paths = sorted((p for p in folder.glob("*") if p.suffix.lower() in known), key=lambda p: (p.stem, p.name))
    if not paths:
        raise ExpungeError(f"'{folder}' holds no image: expected a folder of {', '.join(sorted(known))} files")
    return [Shot(path=p, pixels=partial(read_pixels, p, size), prompt="", seed=0, label=None) for p in paths]


ROLES = ("unsafe", "safe")
"""The two sides of a pair of images."""


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
    found: dict[str, Shot] = {}
    for shot in shots:
        if shot.path.stem in found:
            raise ExpungeError(
                f"'{shot.path.parent}' has two images called '{shot.path.stem}': expected each name once"
            )
        found[shot.path.stem] = shot
    return found


def _size(path: Path) -> tuple[int, int]:
    """Height and width of an image."""
    height, width, _ = read_pixels(path).shape
    return height, width


def read_pixels(path: Path, size: tuple[int, int] | None = None) -> UInt8[Tensor, "H W 3"]:
    """One image; its middle, scaled to (height, width), if a ``size`` is given.

    Raises:
        ExpungeError: if it is not an image.
    """
    try:
        with Image.open(path) as image:
            whole = image.convert("RGB")
            fitted = whole if size is None else ImageOps.fit(whole, (size[1], size[0]), Image.Resampling.LANCZOS)
            return torch.from_numpy(np.array(fitted))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ExpungeError(f"'{path}' is not a readable image: {error}") from error


# concept sets ---------------------------------------------------------------------------------------------------------
def read_set(name: str, folder: Path, label: str | None = None) -> ConceptSet:
    """A concept set by its name in ``folder``, or by the path of its TOML file.

    Or by that of a CSV of prompts as papers publish them (`read_prompts`): its concepts are what the rows are labelled with, or
    ``label`` alone; it has one part, and prompts have the rows' seeds.

    Raises:
        ExpungeError: if there is none, or it is damaged.
    """
    if name.endswith(".csv"):
        return _published_set(Path(name), label)
    file = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not file.is_file():
        raise unknown("concept set", name, [p.stem for p in folder.glob("*.toml")])
    try:
        content = tomllib.loads(file.read_text())
        parts = {
            part: Part(
                seed=int(content[part]["seed"]),
                prompts=tuple((str(p), c) for c, ps in content[part]["prompts"].items() for p in ps),
            )
            for part in ("dev", "test")
        }
        splits = {k: tuple(v) for k, v in content.get("splits", {}).items()}
        return ConceptSet(
            name=file.stem, about=content["about"], concepts=tuple(content["concepts"]), splits=splits, **parts
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExpungeError(f"'{file}' is not a concept set: {type(error).__name__} {error}") from error


def _published_set(file: Path, label: str | None) -> ConceptSet:
    """The set of a published file of prompts, whose one part is both."""
    rows = read_prompts(file, 0.0, 1, label)
    bare = [q.prompt for q in rows if q.label is None]
    if bare:
        raise ExpungeError(
            f"'{file}' does not say what '{bare[0]}' asks for: expected a column {' or '.join(LABELS)}, or a label "
            "(of a further set)"
        )
    part = Part(seed=1_000, prompts=tuple((q.prompt, str(q.label)) for q in rows), seeds=tuple(q.seed for q in rows))
    concepts = tuple(dict.fromkeys(concept for _, concept in part.prompts))
    return ConceptSet(
        name=file.stem, about=f"prompts of {file.name}", concepts=concepts, splits={}, dev=part, test=part
    )


# prompts of the papers -----------------------------------------------------------------------------------------------
SEEDS = ("evaluation_seed", "sd_seed", "seed")
GUIDANCES = ("evaluation_guidance", "sd_guidance_scale", "guidance")
LABELS = ("label_str", "label", "class", "artist", "concept")
"""Columns of published prompt files, the first that is there."""


def read_prompts(
    path: Path, guidance: float, steps: int, label: str | None = None, row_guidance: bool = False
) -> list[Query]:
    """One query for each row of a CSV with the columns of Imagenette's, I2P's, COCO's or the artists' prompt files.

    Args:
        path: the file, or ``hub:OWNER/NAME/FILE.csv`` of a dataset on the hub: ``prompt``, a seed (``evaluation_seed`` before
            ``sd_seed``), and perhaps a class or artist.
        guidance: scale for every row.
        steps: denoising steps for every row.
        label: the concept that every row asks for, in the place of its class or artist.
        row_guidance: take the scale from the row (``evaluation_guidance`` or ``sd_guidance_scale``).

    Raises:
        ExpungeError: if there is no such file, it is empty, or a column or value is missing or bad.
    """
    try:
        with _fetched(path).open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise ExpungeError(f"no file '{path}': expected a CSV of prompts") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExpungeError(f"'{path}' cannot be read as CSV: {error}") from error
    if not rows:
        raise ExpungeError(f"'{path}' has no row: expected a header and a row for each image")

    def column(names: Sequence[str], needed: bool = True) -> str:
        found = next((name for name in names if name in columns), "")
        if needed and not found:
            has = ", ".join(name for name in columns if name)
            raise ExpungeError(f"'{path}' has no column {' or '.join(names)}: expected one beside {has}")
        return found

    prompt, seed, named = column(("prompt",)), column(SEEDS), column(LABELS, needed=False)
    scale = column(GUIDANCES) if row_guidance else ""
    found: list[Query] = []
    for line, row in rows:
        place = f"'{path}' line {line}"
        words = (row[prompt] or "").strip()
        if not words:
            raise ExpungeError(f"{place} has no prompt: expected one")
        found.append(
            Query(
                prompt=words,
                seed=_whole(place, seed, row[seed]),
                label=label or ((row[named] or "").strip() or None if named else None),
                guidance=_scale(place, scale, row[scale]) if scale else guidance,
                steps=steps,
            )
        )
    return found


def _fetched(path: Path) -> Path:
    """The file itself, or its copy from the hub, kept where `huggingface_hub` keeps what it fetches.

    Raises:
        ExpungeError: if the hub does not give it.
    """
    named = re.fullmatch(r"hub:([^/]+/[^/]+)/(.+)", path.as_posix())
    if named is None:
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(*named.groups(), repo_type="dataset"))
    except Exception as error:
        raise ExpungeError(f"prompts '{path}' cannot be fetched from the hub: {reason(error)}") from error


def _whole(place: str, name: str, text: str | None) -> int:
    """A seed."""
    if text is None or not re.fullmatch(r"[0-9]{1,18}", text.strip()):
        raise ExpungeError(f"{place} has {name} '{text or ''}': expected a whole number, 0 or more")
    return int(text)


def _scale(place: str, name: str, text: str | None) -> float:
    """A scale of guidance."""
    try:
        scale = float(text or "")
    except ValueError:
        scale = math.nan
    if not 0 <= scale < math.inf:
        raise ExpungeError(f"{place} has {name} '{text or ''}': expected a number, 0 or more")
    return scale


# records --------------------------------------------------------------------------------------------------------------
def write_records(path: Path, records: Sequence[Record], append: bool = False) -> None:
    """Write records to a ``.jsonl`` file, after those it has if ``append``; the file is replaced whole or not at all."""
    old = path.read_text() if append and path.is_file() else ""
    write_lines(path, [r.as_json() for r in records], before=old)


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
