"""Text vectors in pairs: one that a closed form changes or keeps, and the one that it should be answered like."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.concept import Concept, phrases
from expunge.core.errors import ExpungeError

Tokens = Literal["last", "tail", "all"]
"""Vectors of a phrase: the last word's one, all from the last word through the padding (aligned), or all, place by place."""


class Pairs(NamedTuple):
    """Pairs of text vectors as `ridge_edit` takes them, phrase by phrase."""

    keys: Float[Tensor, "k d"]
    goals: Float[Tensor, "k d"]
    scales: Float[Tensor, "k"]
    sizes: list[int]
    """How many of them each phrase has."""


Phrase = tuple[str, str, float]
"""A source, its goal, and the weight of each of their vectors."""


def erased(targets: Sequence[Concept], anchor: str, templates: Sequence[str], scale: float) -> list[Phrase]:
    """Each target in each template goes to its own anchor, or to ``anchor``; these stay bare."""
    return [
        (phrase, anchor if target.anchor is None else target.anchor, scale)
        for target in targets
        for phrase in phrases(templates, target.name)
    ]


def kept(words: Iterable[str], scale: float) -> list[Phrase]:
    """Each word goes to itself."""
    return [(word, word, scale) for word in words]


def two_encoders(backbone: Backbone) -> bool:
    """Whether a text's vectors are two encoders', one after the other (SD3), so that it has two tails."""
    return backbone.encode([""]).embeds.shape[1] != backbone.tokenize([""]).shape[1]


def paired(backbone: Backbone, asked: Iterable[Phrase], tokens: Tokens) -> Pairs:
    """The vectors of phrases, one after the other.

    A phrase that is its own goal is kept: with ``tail`` in all its vectors, as UCE's first script does.

    Raises:
        ExpungeError: for ``tail`` on a model whose text is two encoders' vectors, one after the other: it has two tails.
    """
    if tokens == "tail" and two_encoders(backbone):
        raise ExpungeError(
            f"tokens tail on {backbone.name} ({backbone.family}), whose texts are two encoders' vectors one after the other: "
            "expected all, or last"
        )
    keys: list[Tensor] = []
    goals: list[Tensor] = []
    scales: list[float] = []
    for source, goal, scale in asked:
        c, g = _aligned(backbone, source, goal, tokens)
        keys.append(c)
        goals.append(g)
        scales += [scale] * len(c)
    k = torch.cat(keys)
    weights = torch.tensor(scales, dtype=k.dtype, device=k.device)
    return Pairs(k, torch.cat(goals), weights, [len(c) for c in keys])


def paired_whole(backbone: Backbone, asked: Iterable[Phrase]) -> Pairs:
    """The pooled vectors of phrases, one for each: what stands for a text as a whole.

    Raises:
        ExpungeError: for a model whose texts have none.
    """
    phrases_asked = list(asked)
    words = [source for source, _, _ in phrases_asked] + [goal for _, goal, _ in phrases_asked]
    pooled = backbone.encode_each(words).pooled
    if pooled is None:
        raise ExpungeError(f"{backbone.name} has no pooled vectors of texts: expected a model that reads them")
    keys, goals = pooled.chunk(2)
    scales = torch.tensor([scale for _, _, scale in phrases_asked], dtype=keys.dtype, device=keys.device)
    return Pairs(keys, goals, scales, [1] * len(keys))


def _aligned(
    backbone: Backbone, source: str, goal: str, tokens: Tokens
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k d"]]:
    c, last_c = _encoded(backbone, source)
    g, last_g = _encoded(backbone, goal)
    if tokens == "last":
        return c[last_c : last_c + 1], g[last_g : last_g + 1]
    if tokens == "all" or source == goal:
        return c, g
    count = min(len(c) - last_c, len(g) - last_g)
    return c[last_c : last_c + count], g[last_g : last_g + count]


def _encoded(backbone: Backbone, text: str) -> tuple[Float[Tensor, "n d"], int]:
    """Text vectors of a prompt, and the position of its last word (the first token's, if it has no word)."""
    ids = backbone.tokenize([text])
    return backbone.encode([text]).embeds[0], max(0, int(backbone.end(ids)[0]) - 1)
