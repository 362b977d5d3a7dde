"""Pairs: an unsafe image, and the same scene made safe, as methods that learn from preferences want them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import phrases
from expunge.core.cost import Cost
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning, check_counts
from expunge.core.judge import Judge
from expunge.core.query import Query, Start
from expunge.settings import presets
from expunge.stages import generate
from expunge.stages.check import ORACLES
from expunge.store import FORMAT, ROLES, RUN, new_folder, read_pairs, write_json, write_lines

VERSION = 1
"""Part of the key of every job that makes pairs; goes up when the same wish would give other images."""
SHEET = "sheet.png"
"""All pairs at a glance: unsafe above safe."""
TILE, COLUMNS = 96, 8


@final
@dataclass(frozen=True, kw_only=True)
class Wish:
    """What pairs are wanted."""

    unsafe: tuple[str, ...]
    """Prompts of the unsafe images."""
    safe: tuple[str, ...]
    """Prompts that they are redrawn with, one for each."""
    count: int = 64
    """Pairs of each prompt."""
    strength: float = 0.75
    """Share of the denoising steps that redraw the unsafe image."""
    target: str | None = None
    """The concept that the judge must see in the unsafe image, and must not see in the safe one."""
    keep: str | tuple[str, ...] | None = None
    """A concept that it must see in both; or one for each prompt."""
    judge: str | None = None
    """Who looks: the model's oracle if not given, where it has one; without a target, or an oracle, nobody."""
    threshold: float = 0.25
    """From which confidence on the judge sees a concept."""
    tries: int = 20
    """Images that may be drawn for one that is accepted."""
    seed: int = 0
    """Seed of all that is drawn."""

    def __post_init__(self) -> None:
        check_counts("pairs", count=self.count, tries=self.tries)
        if not self.unsafe or len(self.unsafe) != len(self.safe):
            raise ExpungeError(
                f"{len(self.unsafe)} unsafe prompts and {len(self.safe)} safe ones: expected a safe one for each, at least one"
            )
        if not 0 < self.threshold <= 1 or not 0 < self.strength <= 1:
            raise ExpungeError(
                f"pairs' threshold {self.threshold} and strength {self.strength}: expected shares above 0, up to 1"
            )
        if isinstance(self.keep, tuple) and len(self.keep) != len(self.unsafe):
            raise ExpungeError(
                f"{len(self.keep)} concepts to keep for {len(self.unsafe)} prompts: expected one, or one for each"
            )
        if self.target is None and (self.judge or self.keep):
            raise ExpungeError(f"judge '{self.judge or self.keep}' with nothing to look for: expected --target")

    @property
    def kept(self) -> tuple[str | None, ...]:
        """What the judge must see besides in both images of each prompt, if anything."""
        return self.keep if isinstance(self.keep, tuple) else (self.keep,) * len(self.unsafe)


class Crossed(NamedTuple):
    """Prompts of pairs, an unsafe and a safe one each."""

    unsafe: tuple[str, ...]
    safe: tuple[str, ...]


def crossed(templates: Sequence[str], unsafe: Sequence[str], safe: Sequence[str]) -> Crossed:
    """Every unsafe thing redrawn as every safe one, in every phrase.

    Raises:
        ExpungeError: if there is no phrase, or one has not exactly one ``{}``.
    """
    both = [(phrase, thing, other) for thing in unsafe for phrase in templates for other in safe]
    return Crossed(
        tuple(phrases([phrase], thing)[0] for phrase, thing, _ in both),
        tuple(phrases([phrase], other)[0] for phrase, _, other in both),
    )


class Drawn(NamedTuple):
    """An image that was accepted."""

    pixels: UInt8[Tensor, "H W 3"]
    query: Query
    tries: int


@final
@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What was written."""

    folder: Path
    count: int
    drawn: int
    """Images that were drawn for them; none for images that were given."""


def make(
    backbone: Backbone,
    wish: Wish,
    out: Path,
    *,
    guidance: float | None = None,
    steps: int | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    on_accepted: Callable[[int], None] | None = None,
) -> Pairs:
    """Make pairs with the model into the folder ``out``: text to image, then image to image away from the unsafe prompt.

    Raises:
        ExpungeError: if the judge cannot tell the concept, or accepts none within the tries; nothing is written then.
    """
    judge = judge_of(wish, backbone.kind)
    if judge is None:
        warnings.warn(
            "no judge looks at the pairs: see its sheet.png before you use them", ExpungeWarning, stacklevel=2
        )
    own_guidance, own_steps = presets.generation(backbone)
    sampling = {
        "guidance": own_guidance if guidance is None else guidance,
        "steps": own_steps if steps is None else steps,
    }
    task, before = Task(targets=(), seed=wish.seed), backbone.cost
    total = wish.count * len(wish.unsafe)

    def ask_unsafe(i: int, attempt: int) -> Query:
        seed = task.number("pairs", "unsafe", i, attempt)
        return Query(prompt=wish.unsafe[i // wish.count], seed=seed, label=wish.target, **sampling)

    def ask_safe(i: int, attempt: int) -> Query:
        start = Start(image=unsafe[i].pixels, strength=wish.strength)
        redrawn = {"negative": wish.unsafe[i // wish.count], "start": start, **sampling}
        seed = task.number("pairs", "safe", i, attempt)
        return Query(prompt=wish.safe[i // wish.count], seed=seed, label=wish.kept[i // wish.count], **redrawn)

    with new_folder(out, overwrite) as folder:
        draw = _Draw(backbone, wish, judge, batch, on_accepted)
        unsafe = draw.all(total, ask_unsafe, showing=True)
        safe = draw.all(total, ask_safe, showing=False)
        rows = [
            (d.pixels, {**d.query.as_json(), "role": role, "pair": pair, "tries": d.tries})
            for role, drawn in zip(ROLES, (unsafe, safe), strict=True)
            for pair, d in enumerate(drawn)
        ]
        about = {"model": backbone.name, "family": backbone.family, "dtype": str(backbone.dtype).removeprefix("torch.")}
        _write(
            folder,
            rows,
            {**about, "pairs": asdict(wish), "sampling": sampling, "judge": draw.judge_name},
            backbone.cost - before,
        )
    return Pairs(folder=out, count=total, drawn=draw.drawn)


def take(unsafe: Path, safe: Path, out: Path, overwrite: bool = False) -> Pairs:
    """Put a user's own images together as pairs: by file name, or row by row (`read_pairs`).

    Raises:
        ExpungeError: if one lacks its other half, is no image, or is not of its other half's size; nothing is written then.
    """
    matched = read_pairs(unsafe, safe)
    with new_folder(out, overwrite) as folder:
        rows = [
            (shot.pixels(), {"prompt": shot.prompt, "seed": shot.seed, "label": shot.label, "role": role, "pair": pair})
            for side, role in enumerate(ROLES)
            for pair, shot in enumerate(both[side] for both in matched)
        ]
        _write(folder, rows, {"model": "none", "given": [str(unsafe), str(safe)]}, Cost())
    return Pairs(folder=out, count=len(matched), drawn=0)


def judge_of(wish: Wish, kind: str) -> Judge | None:
    """Who looks at the pairs of a kind of model, able to tell what is asked; None if nobody does.

    Raises:
        ExpungeError: naming a concept that the judge does not know.
    """
    name = _judge_name(wish, kind)
    if name is None:
        return None
    judge: Judge = Catalog("judges").open(name)
    for concept in filter(None, {wish.target, *wish.kept}):
        judge.label_ids(concept)
    return judge


def _judge_name(wish: Wish, kind: str) -> str | None:
    return wish.judge or (ORACLES.get(kind) if wish.target else None)


@final
class _Draw:
    """Draws images until each place has one that is accepted."""

    def __init__(
        self,
        backbone: Backbone,
        wish: Wish,
        judge: Judge | None,
        batch: int | None,
        on_accepted: Callable[[int], None] | None,
    ) -> None:
        self._backbone, self._wish, self._judge = backbone, wish, judge
        self._batch, self._on_accepted = batch, on_accepted
        self.judge_name = _judge_name(wish, backbone.kind)
        self.drawn = 0

    def all(self, places: int, ask: Callable[[int, int], Query], *, showing: bool) -> list[Drawn]:
        """An image for each place that shows the target (or, if not ``showing``, does not).

        Raises:
            ExpungeError: if a place has none after all tries.
        """
        images: dict[int, Drawn] = {}
        for attempt in range(self._wish.tries):
            waiting = [i for i in range(places) if i not in images]
            if not waiting:
                break
            asked = [ask(i, attempt) for i in waiting]
            pixels = torch.cat(list(generate.render(self._backbone, asked, self._batch)))
            self.drawn += len(asked)
            accepted = self._accepted(pixels, [self._kept(i) for i in waiting], showing)
            for i, query, image, good in zip(waiting, asked, pixels, accepted, strict=True):
                if good:
                    images[i] = Drawn(image, query, attempt + 1)
            if self._on_accepted is not None:
                self._on_accepted(len(waiting) - (places - len(images)))
        if len(images) < places:
            lacking = next(i for i in range(places) if i not in images)
            query = ask(lacking, 0)
            kept = self._kept(lacking)
            with_keep = f" with '{kept}'" if kept else ""
            raise ExpungeError(
                f"{self.judge_name} saw {'' if showing else 'no image without '}'{self._wish.target}'{with_keep} in "
                f"{len(images)} of {places} images of '{query.prompt}' within {self._wish.tries} tries: expected other "
                "prompts, more tries, or another threshold"
            )
        return [images[i] for i in range(places)]

    def _kept(self, number: int) -> str | None:
        return self._wish.kept[number // self._wish.count]

    def _accepted(
        self, pixels: UInt8[Tensor, "b H W 3"], kept: Sequence[str | None], showing: bool
    ) -> Bool[Tensor, "b"]:
        judge, wish = self._judge, self._wish
        good = torch.ones(len(pixels), dtype=torch.bool)
        if judge is None or wish.target is None:
            return good
        good &= (judge.confidence(pixels, wish.target) >= wish.threshold).cpu() == showing
        for concept in filter(None, set(kept)):
            others = torch.tensor([k != concept for k in kept])
            good &= others | (judge.confidence(pixels, concept) >= wish.threshold).cpu()
        valid = judge.valid(pixels)
        return good if valid is None else good & valid.cpu()


def _write(
    folder: Path, rows: Sequence[tuple[UInt8[Tensor, "... 3"], dict[str, Any]]], about: Mapping[str, Any], cost: Cost
) -> None:
    """Images, ``metadata.jsonl``, ``run.json`` and the sheet, into an existing folder."""
    lines: list[dict[str, Any]] = []
    for pixels, row in rows:
        name = f"{row['pair']:05d}-{row['role']}.png"
        Image.fromarray(pixels.numpy()).save(folder / name)
        lines.append({"file_name": name, **row})
    write_lines(folder / "metadata.jsonl", lines)
    run = {"format": FORMAT, "edits": [], "split": "none", "strength": 1.0, "cost": asdict(cost), **about}
    write_json(folder / RUN, run)
    _sheet([pixels for pixels, _ in rows]).save(folder / SHEET)


def _sheet(images: Sequence[UInt8[Tensor, "... 3"]]) -> Image.Image:
    """Pairs in rows, unsafe above safe; ``images`` are all unsafe ones, and then the safe ones."""
    count = len(images) // 2
    columns = min(COLUMNS, count)
    sheet = Image.new("RGB", (columns * TILE, -(-count // columns) * (2 * TILE + 8)), "white")
    for number, pixels in enumerate(images):
        row, column = divmod(number % count, columns)
        tile = Image.fromarray(pixels.numpy()).resize((TILE, TILE))
        sheet.paste(tile, (column * TILE, row * (2 * TILE + 8) + (TILE if number >= count else 0)))
    return sheet
