"""Concept sets: TOML files of concepts and prompts, or published prompt files."""

import tomllib
from pathlib import Path
from typing import Any

from expunge.core.concept import ConceptSet, Part
from expunge.core.errors import ExpungeError, unknown
from expunge.store.prompts import LABELS, read_prompts


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
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        parts = {
            part: Part(
                seed=int(content[part]["seed"]),
                prompts=tuple((p, c) for c, ps in content[part]["prompts"].items() for p in _words(ps)),
            )
            for part in ("dev", "test")
        }
        splits = {k: _words(v) for k, v in content.get("splits", {}).items()}
        return ConceptSet(
            name=file.stem, about=str(content["about"]), concepts=_words(content["concepts"]), splits=splits, **parts
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ExpungeError(f"'{file}' is not a concept set: {type(error).__name__} {error}") from error


def _words(given: Any) -> tuple[str, ...]:
    """A list of words, as a set has it."""
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        raise TypeError(f"{str(given)[:60]!r} is no list of words")
    return tuple(given)


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
