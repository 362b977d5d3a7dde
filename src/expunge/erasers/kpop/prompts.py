"""KPOP's prompts: whose they are, and how the model reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.conditioning import Conditioning, InjectedPrompt
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.erasers.kpop.network import Network, random_network

Place = Literal["mid", "mid-up", "down-mid-up", "text", "words"]
Halves = Literal["both", "text"]
Values = Literal["tied", "own"]
Scope = Literal["per-concept", "shared", "amortised"]
BLOCKS: dict[str, tuple[str, ...]] = {
    "mid": ("mid",),
    "mid-up": ("mid", "up"),
    "down-mid-up": ("down", "mid", "up"),
}
"""The layers that a concatenated prompt is read by, for each place; ``text`` adds it to the text, ``words`` has it encoded."""


def check_place(backbone: Backbone, place: Place) -> None:
    """Refuse a place in whose blocks a model has no cross-attention.

    Raises:
        ExpungeError: naming the place, and the blocks that have some.
    """
    blocks = {layer.block for layer in backbone.attentions().values()}
    if place in BLOCKS and not blocks & set(BLOCKS[place]):
        raise ExpungeError(
            f"kpop's place {place}, and {backbone.name} has cross-attention in {', '.join(sorted(blocks)) or 'no'} blocks "
            "alone: expected a place that has some (place down-mid-up)"
        )


def injected(
    cond: Conditioning, tokens: Float[Tensor, "b *pair k d"], place: Place, rows: Tensor | None = None
) -> Conditioning:
    """``cond`` with a prompt for each of its ``rows`` (all by default): Table 1 of the paper.

    A pair of prompts is one for the keys and one for the values.
    """
    rows = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device) if rows is None else rows
    if place == "text":
        return replace(cond, embeds=cond.embeds + tokens.to(cond.embeds) * rows[:, None, None])  # (C + p) W
    keys, values = (tokens[:, 0], tokens[:, 1]) if tokens.ndim == 4 else (tokens, None)
    # [C ; p_k] W_k and [C ; p_v] W_v, where p_v = p_k = p unless there is a pair
    return replace(cond, prompt=InjectedPrompt(tokens=keys, values=values, rows=rows, blocks=BLOCKS[place]))


def spoken(
    backbone: Backbone, ids: Int[Tensor, "b n"], tokens: Float[Tensor, "b k w"], last: Sequence[int]
) -> Conditioning:
    """The texts ``ids`` as the text encoder reads them with new tokens behind the word at ``last``: ``<c_e> <v_1> … <v_k>``.

    What no longer fits is left out at the end. Differentiable in the tokens.

    Raises:
        ExpungeError: if a text has no room for them.
    """
    k, length = tokens.shape[1], ids.shape[1]
    room = length - 2 - max(last)
    if k > room:
        raise ExpungeError(f"a prompt of {k} tokens among the words: expected at most {room}, with a text of {length}")
    rows: list[Tensor] = []
    for row, end, here in zip(ids, backbone.end(ids).tolist(), last, strict=True):
        head, tail = row[: here + 1], row[here + 1 : end]
        filler = row[here : here + 1].expand(k)  # any word: the tokens take the places of its embeddings
        rows.append(torch.cat([head, filler, tail[: length - 2 - here - k], row[end:]])[:length])
    longer = torch.stack(rows)
    known = backbone.embed(longer)
    parts = [
        torch.cat([e[: here + 1], v.to(e), e[here + 1 + k :]]) for e, v, here in zip(known, tokens, last, strict=True)
    ]
    with torch.set_grad_enabled(torch.is_grad_enabled() and tokens.requires_grad):
        return replace(backbone.encode(longer, torch.stack(parts)), tokens=ids)


def last_word(text: Sequence[int], words: Sequence[int]) -> int | None:
    """Where ``words`` end that stand in ``text`` in one piece; None if they do not."""
    ends = (i + len(words) - 1 for i in range(len(text) - len(words) + 1) if [*text[i : i + len(words)]] == [*words])
    return next(ends, None)


def words_of(backbone: Backbone, names: Sequence[str]) -> list[list[int]]:
    """The tokens of each name, without the marks of a text's start and end."""
    ids = backbone.tokenize(names)
    return [row[1:end].tolist() for row, end in zip(ids, backbone.end(ids).tolist(), strict=True)]


def scale(backbone: Backbone) -> float:
    """Standard deviation of the vocabulary's token embeddings (of a thousand of them)."""
    ids = torch.arange(0, backbone.vocabulary, max(1, backbone.vocabulary // 1024), device=backbone.device)
    return float(backbone.embed(ids[None]).float().std())


@final
@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of some concepts, and the tensors that are learned for them."""

    scope: Scope
    texts: Mapping[str, Float[Tensor, "n d"]]
    """Each concept's name as the text encoder reads it, which a network makes its prompt from."""
    shape: tuple[int, ...]
    """Of one prompt: ``[k, d]``, or ``[2, k, d]`` for keys and values."""

    def start(self, std: float, task: Task, like: Tensor) -> dict[str, Tensor]:
        """Random tensors to learn from, in the precision and place of ``like``."""
        if self.scope == "amortised":
            drawn = random_network(self.texts, self.shape, std, task.generator("prompt network"), like)
            return dict(drawn.weights)
        whose = {name: ("prompt", name) for name in self.texts}
        if self.scope == "shared":
            whose = {"shared": ("shared prompt",)}
        return {
            name: std * torch.randn(self.shape, generator=task.generator(*purpose)).to(like)
            for name, purpose in whose.items()
        }

    def of(self, learned: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*pair k d"]]:
        """Each concept's prompt, from the tensors that are learned; differentiable."""
        if self.scope == "shared":
            return dict.fromkeys(self.texts, learned["shared"])
        network = self.network(learned)
        return dict(learned) if network is None else network.prompts()

    def network(self, learned: Mapping[str, Tensor]) -> Network | None:
        """The network that makes the prompts, if one does."""
        return Network(weights=learned, texts=self.texts, shape=self.shape) if self.scope == "amortised" else None
