"""A request for one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


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


def queries(
    prompts: Sequence[tuple[str, str | None]], count: int, seed: int, guidance: float, steps: int
) -> list[Query]:
    """``count`` queries for each (prompt, label); seeds run from ``seed`` on and are the same for every prompt."""
    return [
        Query(prompt=prompt, label=label, seed=seed + i, guidance=guidance, steps=steps)
        for prompt, label in prompts
        for i in range(count)
    ]
