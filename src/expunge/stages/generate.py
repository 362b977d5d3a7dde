"""Generate: model, edits and queries in; an image folder out."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.cost import Cost
from expunge.core.edit import Edit, strengths
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.settings import presets
from expunge.stages import finite, texts
from expunge.stages.filters import Filter, Sight, described
from expunge.stages.resume import of_images
from expunge.store import FORMAT, RESUME, RUN, has_rows, new_folder, read_json, write_images, write_json

VERSION = 1
"""Raised when the same model, edits and queries begin to give other images, so that stored ones are not taken for them."""


def render(
    backbone: Backbone,
    queries: Iterable[Query],
    batch: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[UInt8[Tensor, "b H W 3"]]:
    """Images of ``queries`` in order, in batches (of the preset's size) of queries that are alike."""
    for asked in _batches(backbone, queries, batch):
        images = backbone.generate(asked)
        finite.check_images(backbone, backbone.edits, asked, images)
        yield images.pixels
        if on_batch is not None:
            on_batch(len(asked))


def _batches(backbone: Backbone, queries: Iterable[Query], batch: int | None) -> Iterator[Sequence[Query]]:
    """Queries in order, in batches of those that are alike."""
    batch = presets.batch(backbone) if batch is None else batch
    if batch < 1:
        raise ExpungeError(f"batch {batch}: expected 1 or more")
    alike: list[Query] = []
    for query in queries:
        if alike and (len(alike) == batch or not query.alike(alike[0])):
            yield alike
            alike = []
        alike.append(query)
    if alike:
        yield alike


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
    refused = [by.refused(q.prompt) for q in queries]
    seen: list[Sight] = []
    allowed = [q for q, why in zip(queries, refused, strict=True) if not why]
    images = (x for batch_ in by.passed(render(backbone, allowed, batch, on_batch), seen) for x in batch_)
    passed = 0
    for why in refused:
        if why:
            sights.append(Sight(why, 0.0))
            yield torch.zeros((1, *backbone.image_size, 3), dtype=torch.uint8)
        else:
            image = next(images)
            sights.append(seen[passed])
            passed += 1
            yield image[None]


@final
class _Unfinished:
    """How far a folder of images is, written down after each batch in `RESUME`, so that a later run goes on there.

    Batches are the unit: images of one batch may differ in their last bits from those of another.
    """

    def __init__(
        self, folder: Path, of: str, queries: Sequence[Query], sizes: Sequence[int], by: Filter | None
    ) -> None:
        """The state of ``folder``, whose images have the fingerprint ``of`` and are made in batches of ``sizes``.

        Raises:
            ExpungeError: if what is there is of other images.
        """
        self._file, self._of = folder / RESUME, of
        refused = [by is not None and bool(by.refused(q.prompt)) for q in queries]
        images_until = list(accumulate(0 if no else 1 for no in refused))
        ends = set(accumulate(sizes))
        self._whole = {row for row, images in enumerate(images_until, 1) if images in ends}
        self.rows, self.spent = 0, Cost()
        if self._file.is_file():
            content = read_json(self._file)
            if content.get("of") != of:
                raise ExpungeError(
                    f"'{folder}' holds images of another model, edit, prompt or setting: expected the same, or no --resume"
                )
            try:
                self.rows, self.spent = int(content["rows"]), Cost(**content["cost"])
            except (KeyError, TypeError, ValueError) as error:
                raise ExpungeError(
                    f"'{self._file}' is damaged: expected what a killed run wrote, or no --resume ({error})"
                ) from error
            if not has_rows(folder, self.rows):
                warnings.warn(f"images in '{folder}' were damaged: begun anew", ExpungeWarning, stacklevel=2)
                self.rows, self.spent = 0, Cost()

    def note(self, rows: int, spent: Cost) -> None:
        """Write down that so many rows are there, if a batch ends with them."""
        if rows in self._whole:
            write_json(self._file, {"of": self._of, "rows": rows, "cost": asdict(spent)}, overwrite=True)


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
    attack_edit: Edit | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Path:
    """Generate with ``edits`` attached (and detached afterwards) into the folder ``out``.

    ``control`` names the kind of recovery that the images show, if they show one. A filter ``by`` holds prompts and images
    back; what is shown instead says so in its line of the metadata. ``attack`` says how queries were found, if by an attack,
    and ``attack_edit`` is what that attack changed in the model, on top of ``edits``. Beside images and ``metadata.jsonl`` it
    writes ``run.json``: model, edits, settings, and the evaluations it took. With ``resume`` it goes on with the whole batches
    that a killed or interrupted run to ``out`` left, to the same images.

    Raises:
        ExpungeError: if there is nothing to generate, ``out`` is taken, or what is to be resumed is of other images.
    """
    if not queries:
        raise ExpungeError("nothing to generate: expected at least one prompt")
    if by is not None:
        by.open()
    texts.tell_of(backbone, [text for query in queries for text in (query.prompt, query.negative)])
    batch = presets.batch(backbone) if batch is None else batch
    about = {"split": split, "strength": strength, "any_base": any_base, "control": control}
    held = {"filter": None if by is None else described(by), **({} if attack is None else {"attack": dict(attack)})}
    on_top = [] if attack_edit is None else [attack_edit]
    each = [*strengths(strength, edits), *(1.0 for _ in on_top)]
    with (
        new_folder(out, overwrite, resume=resume) as folder,
        backbone.attached([*edits, *on_top], each, any_base),
    ):
        of = of_images(backbone, [*edits, *on_top], queries, batch, version=VERSION, **about, **held)
        cost = _written(backbone, folder, queries, batch, by, of, on_batch)
        write_json(folder / RUN, _run(backbone, edits, queries, about, held, cost))
    return out


def _written(
    backbone: Backbone,
    folder: Path,
    queries: Sequence[Query],
    batch: int,
    by: Filter | None,
    of: str,
    on_batch: Callable[[int], None] | None,
) -> Cost:
    """Write the images with the fingerprint ``of`` into a folder, or those that an earlier run left out; the cost of all."""
    asked = [q for q in queries if by is None or not by.refused(q.prompt)]
    sizes = [len(alike) for alike in _batches(backbone, asked, batch)]
    unfinished = _Unfinished(folder, of, queries, sizes, by)
    first, before = unfinished.rows, backbone.cost - unfinished.spent
    if on_batch is not None and first:
        on_batch(first)
    sights: list[Sight] = []
    write_images(
        folder,
        queries,
        _filtered(backbone, queries[first:], by, sights, batch, on_batch),
        lambda row: {"filtered": sights[row - first].reason} if by else {},
        first,
        lambda rows: unfinished.note(rows, backbone.cost - before),
    )
    return backbone.cost - before


def _sampling(query: Query) -> dict[str, Any]:
    """How images were sampled, as records and reports tell it."""
    pair = {} if query.true_cfg == 1 else {"true_cfg": query.true_cfg}
    return {"guidance": query.guidance, "steps": query.steps, **pair}


def _run(
    backbone: Backbone,
    edits: Sequence[Edit],
    queries: Sequence[Query],
    about: Mapping[str, Any],
    held: Mapping[str, Any],
    cost: Cost,
) -> dict[str, Any]:
    """What ``run.json`` says of images; an attack's own edit stands in ``attack``, since it erased nothing."""
    return {
        "format": FORMAT,
        "model": backbone.name,
        "family": backbone.family,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        **about,
        "sampling": _sampling(queries[0]),
        "edits": [
            {"id": e.id, "kind": e.kind, "provenance": None if e.provenance is None else asdict(e.provenance)}
            for e in edits
            if not e.private
        ],
        **held,
        "key": next((e.id for e in edits if e.private), None),
        "cost": asdict(cost),
    }
