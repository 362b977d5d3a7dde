"""A request for one image, and an image that was made for one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import UInt8
from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Query:
    """A prompt, the seed of its noise, and how to sample."""

    prompt: str
    seed: int
    label: str | None = None
    """The concept that the prompt asks for, which a judge should find; None if it asks for nothing in particular."""
    guidance: float
    """Scale of classifier-free guidance."""
    steps: int
    """Denoising steps."""


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


def queries(
    prompts: Sequence[tuple[str, str | None]], count: int, seed: int, guidance: float, steps: int
) -> list[Query]:
    """``count`` queries for each (prompt, label); seeds run from ``seed`` on and are the same for every prompt."""
    return [
        Query(prompt=prompt, label=label, seed=seed + i, guidance=guidance, steps=steps)
        for prompt, label in prompts
        for i in range(count)
    ]


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
