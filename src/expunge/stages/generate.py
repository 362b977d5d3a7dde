"""Generate: model, edits and queries in; an image folder out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.stages import presets, texts
from expunge.stages.filters import Filter, Sight, described
from expunge.store import FORMAT, RUN, new_folder, write_images, write_json

VERSION = 1
"""Raised when the same model, edits and queries begin to give other images, so that stored ones are not taken for them."""
PLURAL = frozenset({"grapes", "cherries", "scissors", "glasses", "crossed swords"})


def fill(template: str, concept: str) -> str:
    """Put ``concept`` into ``template``; after an "a" it gets the article it takes."""
    return template.replace("a {}", article(concept)) if "a {}" in template else template.replace("{}", concept)


def article(concept: str) -> str:
    """``concept`` with its indefinite article, where it takes one."""
    if concept in PLURAL or concept.split(" ", 1)[0] in ("a", "an", "the"):
        return concept
    return f"{'an' if concept[:1].lower() in 'aeiou' else 'a'} {concept}"


def render(
    backbone: Backbone,
    queries: Sequence[Query],
    batch: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[UInt8[Tensor, "b H W 3"]]:
    """Images of ``queries`` in order, in batches (of the preset's size) of queries that are alike."""
    batch = presets.batch(backbone) if batch is None else batch
    if batch < 1:
        raise ExpungeError(f"batch {batch}: expected 1 or more")
    start = 0
    while start < len(queries):
        first = queries[start]
        end = start
        while end < min(start + batch, len(queries)) and queries[end].alike(first):
            end += 1
        yield backbone.generate(queries[start:end]).pixels
        if on_batch is not None:
            on_batch(end - start)
        start = end


def _filtered(
    backbone: Backbone,
    queries: Sequence[Query],
    by: Filter | None,
    sights: list[Sight],
    batch: int | None,
    on_batch: Callable[[int], None] | None,
) -> Iterator[UInt8[Tensor, "b H W 3"]]:
    """Images of ``queries`` in order; a prompt that the filter refuses is not generated for, and shown as black."""
    if by is None:
        yield from render(backbone, queries, batch, on_batch)
        return
    words = [by.named(q.prompt) for q in queries]
    seen: list[Sight] = []
    allowed = [q for q, word in zip(queries, words, strict=True) if not word]
    images = (x for batch_ in by.passed(render(backbone, allowed, batch, on_batch), seen) for x in batch_)
    given = 0
    for word in words:
        if word:
            sights.append(Sight(f"word: {word}", 0.0))
            yield torch.zeros((1, *backbone.image_size, 3), dtype=torch.uint8)
        else:
            image = next(images)
            sights.append(seen[given])
            given += 1
            yield image[None]


def to_folder(
    backbone: Backbone,
    edits: Sequence[Edit],
    queries: Sequence[Query],
    out: Path,
    *,
    split: str = "test",
    batch: int | None = None,
    strength: float | Sequence[float] = 1.0,
    any_base: bool = False,
    control: str | None = None,
    by: Filter | None = None,
    attack: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Path:
    """Generate with ``edits`` attached (and detached afterwards) into the folder ``out``.

    ``control`` names the kind of recovery that the images show, if they show one. A filter ``by`` holds prompts and images
    back; what is shown instead says so in its line of the metadata. ``attack`` says how queries were found, if by an attack.
    Beside images and ``metadata.jsonl`` it writes ``run.json``: model, edits, settings, and the evaluations it took.
    """
    if not queries:
        raise ExpungeError("nothing to generate: expected at least one prompt")
    texts.tell_of(backbone, [text for query in queries for text in (query.prompt, query.negative)])
    with new_folder(out, overwrite) as folder, backbone.attached(edits, strength, any_base):
        before = backbone.cost
        sights: list[Sight] = []
        batches = _filtered(backbone, queries, by, sights, batch, on_batch)
        write_images(folder, queries, batches, lambda row: {"filtered": sights[row].reason} if by else {})
        made = {
            "format": FORMAT,
            "model": backbone.name,
            "family": backbone.family,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "split": split,
            "strength": strength,
            "any_base": any_base,
            "control": control,
            "sampling": {"guidance": queries[0].guidance, "steps": queries[0].steps},
            "edits": [
                {"id": e.id, "kind": e.kind, "provenance": None if e.provenance is None else asdict(e.provenance)}
                for e in edits
                if not e.private
            ],
            "filter": None if by is None else described(by),
            **({} if attack is None else {"attack": dict(attack)}),
            "key": next((e.id for e in edits if e.private), None),
            "cost": asdict(backbone.cost - before),
        }
        write_json(folder / RUN, made)
    return out
