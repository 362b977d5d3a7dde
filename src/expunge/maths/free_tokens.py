"""Prompts some of whose tokens are free: read with vectors in their place, written as text that is read as the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.conditioning import Conditioning
from expunge.core.errors import ExpungeError
from expunge.core.texts import words_of

Layout = Sequence[str | None]
"""The parts of a prompt, in order: its own words, and None for each free token."""


class Vocabulary(NamedTuple):
    """What a free token can become."""

    ids: Int[Tensor, "v"]
    vectors: Float[Tensor, "v d"]
    """Their embeddings, in float32."""


@torch.no_grad()
def vocabulary(backbone: Backbone) -> Vocabulary:
    """The tokens of a model that survive being written out: a query holds text, which is tokenized again.

    Raises:
        ExpungeError: for a model whose tokens, or their embeddings, cannot be looked at.
    """
    ids = backbone.spellable()
    vectors = backbone.embed(ids[None])[0] if len(ids) else torch.zeros(0, 0)
    if not len(ids) or not vectors.is_floating_point():
        raise ExpungeError(
            f"the vocabulary of {backbone.name} cannot be looked at: expected a text encoder with its tokenizer, and token "
            "embeddings of floating point"
        )
    return Vocabulary(ids, vectors.float())


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FreeTokens:
    """Prompts with free tokens, which are counted over all prompts: those of the first one, then those of the next."""

    layouts: Sequence[Layout]
    ids: Int[Tensor, "b n"]
    """As the model reads them, with a filler for each free token."""
    at: Bool[Tensor, "b n"]
    """Where the free tokens are."""

    @property
    def counts(self) -> list[int]:
        """How many are free in each prompt."""
        return self.at.sum(-1).tolist()

    def rows(self, index: Sequence[int]) -> "FreeTokens":
        """Some of the prompts."""
        chosen = torch.tensor(index, dtype=torch.long, device=self.ids.device)
        return FreeTokens(layouts=[self.layouts[i] for i in index], ids=self.ids[chosen], at=self.at[chosen])

    def of_rows(self, index: Sequence[int]) -> Int[Tensor, "g"]:
        """Which of all free tokens belong to some of the prompts."""
        ends = self.at.sum(-1).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        numbers = [i for row in index for i in range(starts[row], ends[row])]
        return torch.tensor(numbers, dtype=torch.long, device=self.ids.device)

    def filled(self, tokens: Int[Tensor, "f"]) -> Int[Tensor, "b n"]:
        """The prompts' ids with ``tokens`` in the free places."""
        ids = self.ids.clone()
        ids[self.at] = tokens
        return ids

    def read(self, backbone: Backbone, tokens: Int[Tensor, "f"], vectors: Float[Tensor, "f d"]) -> Conditioning:
        """The prompts as the model reads them with the embeddings ``vectors``; differentiable in those.

        ``tokens`` say what they are for what looks at ids: the gates of adapters, a text encoder that is not CLIP's.
        """
        ids = self.filled(tokens)
        placed = vectors.new_zeros((*ids.shape, vectors.shape[1])).index_put(torch.where(self.at), vectors)
        return replace(backbone.encode(ids, placed, self.at), tokens=ids)

    def texts(self, backbone: Backbone, tokens: Int[Tensor, "f"]) -> list[str]:
        """The prompts in words, with ``tokens`` in the free places.

        Raises:
            ExpungeError: if the model would read one of these texts as other tokens.
        """
        words = iter(backbone.spell(tokens[:, None]))
        texts = [_joined([next(words) if part is None else part for part in layout]) for layout in self.layouts]
        again = backbone.tokenize(texts)
        same = (again == self.filled(tokens)).all(-1).tolist()
        if not all(same):
            text = texts[same.index(False)]
            raise ExpungeError(f"the model reads '{text}' as other tokens than it was made of: expected the same")
        return texts


def free_tokens(backbone: Backbone, method: str, layouts: Sequence[Layout]) -> FreeTokens:
    """Prompts with the given ``layouts``.

    Raises:
        ExpungeError: if one has no free token, is longer than the model reads, or reads otherwise in one piece than in parts.
    """
    texts = [_joined([backbone.filler if part is None else part for part in layout]) for layout in layouts]
    ids = backbone.tokenize(texts)
    at = torch.zeros_like(ids, dtype=torch.bool)
    filler = backbone.tokenize([backbone.filler])[0, backbone.first]
    for row, (layout, cut) in enumerate(zip(layouts, backbone.cut(texts), strict=True)):
        own, free = _joined([part for part in layout if part is not None]), sum(part is None for part in layout)
        if not free:
            raise ExpungeError(f"{method} has no free token in '{own}': expected a longer prompt, or other settings")
        if cut:
            beside = f" beside '{own}'" if own else ""
            raise ExpungeError(
                f"{method} has {free} free tokens{beside}: expected no more than the {ids.shape[1] - 1 - backbone.first} "
                f"tokens that {backbone.name} reads"
            )
        own_lengths = (1 if part is None else _length(backbone, part) for part in layout)
        ends = [*accumulate(own_lengths, initial=backbone.first)]
        at[row, [start for start, part in zip(ends, layout, strict=False) if part is None]] = True
        if ends[-1] != int(backbone.end(ids[row : row + 1])[0]) or not bool((ids[row][at[row]] == filler).all()):
            raise ExpungeError(f"'{own}' is read otherwise in parts than as a whole: expected plain words")
    return FreeTokens(layouts=layouts, ids=ids, at=at)


def parted(backbone: Backbone, prompt: str, every: int) -> list[str]:
    """A prompt in parts of ``every`` tokens; no word is cut in two, so a part may be longer, and the last one shorter.

    Raises:
        ExpungeError: for a prompt that is longer than the model reads, or is read otherwise in parts.
    """
    if backbone.cut([prompt])[0]:
        raise ExpungeError(f"prompt '{prompt}' is longer than {backbone.name} reads: expected a shorter one")
    ids = backbone.tokenize([prompt])
    own, start = ids[0, backbone.first : int(backbone.end(ids)[0])], 0
    parts: list[str] = []
    while start < len(own):
        stop = min(start + every, len(own))
        while stop < len(own) and not _stands_alone(backbone, own[start:stop]):
            stop += 1
        parts += backbone.spell(own[None, start:stop])
        start = stop
    if not torch.equal(backbone.tokenize([_joined(parts)]), ids):
        raise ExpungeError(f"'{prompt}' is read otherwise in parts than as a whole: expected plain words")
    return parts


def lengths(backbone: Backbone, parts: Sequence[str]) -> list[int]:
    """How many tokens each of some texts is."""
    return [_length(backbone, part) for part in parts]


def _length(backbone: Backbone, text: str) -> int:
    words = words_of(backbone, text)
    return words.stop - words.start


def _stands_alone(backbone: Backbone, ids: Int[Tensor, "k"]) -> bool:
    """Whether tokens end with the end of a word: written out, they are read as the same."""
    again = backbone.tokenize(backbone.spell(ids[None]))
    return torch.equal(again[0, backbone.first : int(backbone.end(again)[0])], ids)


def _joined(words: Sequence[str]) -> str:
    """Words with spaces between them."""
    return " ".join(word for word in words if word)
