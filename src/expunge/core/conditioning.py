"""What the denoiser is told: texts as it reads them, a row an image."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from expunge.core.errors import ExpungeError


@final
@dataclass(frozen=True, kw_only=True)
class InjectedPrompt:
    """Learned tokens that some cross-attention layers read after the text's own; the layers' own matrices project them."""

    tokens: Float[Tensor, "b k d"]
    values: Float[Tensor, "b k d"] | None = None
    """What the projections of values read in the place of ``tokens``, if not the same."""
    rows: Bool[Tensor, "b"]
    """Rows that read them; the others attend to the text alone."""
    blocks: tuple[str, ...]
    """Which layers: any of ``down``, ``mid``, ``up``."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "InjectedPrompt":
        """Apply ``change`` to every tensor."""
        values = None if self.values is None else change(self.values)
        return replace(self, tokens=change(self.tokens), values=values, rows=change(self.rows))


@final
@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What the denoiser is told, one row an image."""

    embeds: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"] | None = None
    mask: Tensor | None = None
    tokens: Int[Tensor, "b m"] | None = None
    """Token ids, where the conditioning came from a prompt."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    prompt: InjectedPrompt | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply ``change`` to every tensor."""
        return Conditioning(
            embeds=change(self.embeds),
            pooled=None if self.pooled is None else change(self.pooled),
            mask=None if self.mask is None else change(self.mask),
            tokens=None if self.tokens is None else change(self.tokens),
            extra={k: change(v) for k, v in self.extra.items()},
            prompt=None if self.prompt is None else self.prompt.map(change),
        )

    def expand(self, rows: int) -> "Conditioning":
        """One row repeated ``rows`` times; a batch of that size is returned as it is."""
        return self if len(self.embeds) == rows else self.map(lambda t: t.expand(rows, *t.shape[1:]))

    def join(self, other: "Conditioning") -> "Conditioning":
        """Rows of ``self``, then rows of ``other``; tokens are kept only if both have them.

        Raises:
            ExpungeError: if only one of the two has an injected prompt.
        """
        halves = (self.prompt, other.prompt)
        if len({(p is None, p is not None and p.values is None) for p in halves}) > 1:
            raise ExpungeError(
                "one half of a guided pair has an injected prompt, or its values: expected both or neither"
            )
        keep = self.tokens is not None and other.tokens is not None
        first, last = (c if keep else replace(c, tokens=None) for c in (self, other))
        second = iter(_tensors(last))
        return first.map(lambda t: torch.cat([t, next(second)]))

    def rows(self, index: Int[Tensor, "b"]) -> "Conditioning":
        """The rows ``index``, in that order; a row may be taken several times."""
        return self.map(lambda t: t[index])


def _tensors(cond: Conditioning) -> list[Tensor]:
    tensors: list[Tensor] = []
    cond.map(lambda t: (tensors.append(t), t)[1])
    return tensors
