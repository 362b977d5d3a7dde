"""A request for one image, and an image that was made for one."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from typing_extensions import override

from expunge.core.cost import predictions
from expunge.core.edit import fingerprint
from expunge.core.errors import ExpungeError


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedWord:
    """Token embeddings that are in no vocabulary, read where ``word`` stands in a prompt."""

    word: str
    """What stands for them, with spaces around it: ``<v>``."""
    vectors: Float[Tensor, "k d"]

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the sha256 of its contents."""
        return fingerprint({self.word: self.vectors})[:16]

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, LearnedWord) and self.id == other.id

    @override
    def __hash__(self) -> int:
        return hash(self.id)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """An image that sampling starts from, noised, in the place of pure noise (SDEdit, 2108.01073)."""

    image: UInt8[Tensor, "H W 3"] | Float[Tensor, "c h w"]
    """Pixels, or scaled latents."""
    strength: float
    """Share of the denoising steps that are done, from 0 (none: refused) to 1 (all)."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ExpungeError(f"strength {self.strength} of an image to image: expected more than 0, up to 1")

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the sha256 of the image, and of its type: pixels are no latents."""
        return fingerprint({str(self.image.dtype): self.image})[:16]

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Start) and (self.id, self.strength) == (other.id, other.strength)

    @override
    def __hash__(self) -> int:
        return hash((self.id, self.strength))


@final
@dataclass(frozen=True, kw_only=True)
class Query:
    """A prompt, the seed of its noise, and how to sample."""

    prompt: str
    seed: int
    label: str | None = None
    """The concept that the prompt asks for, which a judge should find; None if it asks for nothing in particular."""
    guidance: float
    """Scale of classifier-free guidance; a distilled model (FLUX) is told it, and has no pair of predictions for it."""
    steps: int
    """Denoising steps."""
    negative: str = ""
    """What guidance is guided away from instead of the empty prompt."""
    start: Start | None = None
    """An image to start from; pure noise if there is none."""
    learned: LearnedWord | None = None
    """A word in the prompt that the vocabulary lacks."""
    true_cfg: float = 1.0
    """Scale by which a distilled model's predictions for the prompt and the negative one are combined; 1 is no pair."""

    def __post_init__(self) -> None:
        for name in ("guidance", "true_cfg"):
            if not math.isfinite(getattr(self, name)):
                raise ExpungeError(f"{name} {getattr(self, name)}: expected a finite number")
        if not -(2**63) <= self.seed < 2**64:
            raise ExpungeError(f"seed {self.seed}: expected a whole number of 64 bits")

    @property
    def own(self) -> tuple[str, str, int]:
        """What random numbers for it alone depend on, so that they do not depend on what else is asked for."""
        return self.label or "", self.prompt, self.seed

    def alike(self, other: "Query") -> bool:
        """Whether both can be sampled in one batch."""
        return self._sampling == other._sampling

    @property
    def _sampling(self) -> tuple[Any, ...]:
        strength = None if self.start is None else self.start.strength
        return (self.guidance, self.steps, self.negative, strength, self.learned, self.true_cfg)

    def as_json(self) -> dict[str, Any]:
        """What metadata says of it: tensors by their ids, and nothing of what it is without."""
        plain = {name: getattr(self, name) for name in ("prompt", "seed", "label", "guidance", "steps")}
        if self.negative:
            plain["negative"] = self.negative
        if self.true_cfg != 1:
            plain["true_cfg"] = self.true_cfg
        if self.start is not None:
            plain["strength"] = self.start.strength
        if self.learned is not None:
            plain["learned"] = {"word": self.learned.word, "id": self.learned.id}
        return plain


class Images(NamedTuple):
    """What was generated."""

    pixels: UInt8[Tensor, "b H W 3"]
    latents: Float[Tensor, "b c h w"]


class Box(NamedTuple):
    """Where something is in an image, in pixels from its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    label: str | None = None

    def inside(self, height: int, width: int) -> bool:
        """Whether it lies in an image of that size; a pixel over its edge is taken for rounding."""
        return min(self.x, self.y) >= -1 and self.x + self.width <= width + 1 and self.y + self.height <= height + 1


@final
@dataclass(frozen=True, kw_only=True)
class Shot:
    """An image and what was asked for."""

    path: Path
    """Where it is stored; just a name for one that is not."""
    pixels: Callable[[], UInt8[Tensor, "H W 3"]]
    """Reads the image."""
    prompt: str
    seed: int
    label: str | None
    boxes: Sequence[Box] = ()
    """Where things are in it, if its metadata says so."""
    mask: Callable[[], Bool[Tensor, "H W"]] | None = None
    """Reads where something is in it, if its metadata names a mask."""


def queries(
    prompts: Sequence[tuple[str, str | None]],
    count: int,
    seed: int,
    guidance: float,
    steps: int,
    seeds: Sequence[int] = (),
    true_cfg: float = 1.0,
) -> list[Query]:
    """``count`` queries for each (prompt, label); seeds run from ``seed`` on for every prompt, or from its own of ``seeds``."""
    return [
        Query(prompt=prompt, label=label, seed=first + i, guidance=guidance, steps=steps, true_cfg=true_cfg)
        for (prompt, label), first in zip(prompts, seeds or [seed] * len(prompts), strict=True)
        for i in range(count)
    ]


def predictions_of(queries: Sequence[Query], distilled: bool) -> int:
    """The most predictions that one of some queries asks for in a step; 1 if there is none."""
    return max((predictions(distilled, query.guidance, query.true_cfg) for query in queries), default=1)


def batches(shots: Sequence[Shot], size: int) -> Iterator[UInt8[Tensor, "b H W 3"]]:
    """The pixels of images in order, in batches of at most ``size`` that are equally large."""
    waiting: list[Tensor] = []
    for shot in shots:
        pixels = shot.pixels()
        if waiting and (len(waiting) == size or pixels.shape != waiting[0].shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(pixels)
    if waiting:
        yield torch.stack(waiting)
