"""Words that T5 reads one by one and CLIP as a whole: vectors for both, and where CLIP has what T5 has."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from expunge.backbones.texts import Texts
from expunge.core.errors import ExpungeError
from expunge.core.texts import Spread

T5, CLIP = "text_encoder_2", "text_encoder"


class Halves(NamedTuple):
    """Embeddings for each of the two."""

    t5: Float[Tensor, "b n d"] | None
    clip: Float[Tensor, "b n e"] | None


def _first(texts: Texts, tower: str, word: str) -> Int[Tensor, "1"]:
    """The first token of a word."""
    ids = texts.tokenizer(tower)(word, add_special_tokens=False).input_ids[:1]
    return torch.tensor(ids, device=texts.backbone.device)


def word_vectors(texts: Texts, word: str) -> Float[Tensor, "1 d"]:
    """The embeddings of a word's first token, T5's and CLIP's side by side; see `Backbone.word_vectors`."""
    vectors = [texts.table(tower)(_first(texts, tower, word)) for tower in (T5, CLIP)]
    return torch.cat(vectors, -1)


def word_spread(texts: Texts) -> Spread:
    """Where the embeddings of both lie; see `Backbone.word_spread`."""
    tables = [texts.table(tower).weight.detach().float() for tower in (T5, CLIP)]
    return Spread(torch.cat([t.mean(0) for t in tables]), torch.cat([t.std(0) for t in tables]))


def halves(texts: Texts, embeddings: Float[Tensor, "b n d"] | None) -> Halves:
    """Embeddings as wide as T5's, or as T5's and CLIP's side by side, parted.

    Raises:
        ExpungeError: if they are neither.
    """
    if embeddings is None:
        return Halves(None, None)
    own, clip = (texts.table(tower).weight.shape[1] for tower in (T5, CLIP))
    given = embeddings.shape[-1]
    if given not in (own, own + clip):
        raise ExpungeError(
            f"token embeddings of {given} numbers for {texts.backbone.name}: expected {own} (T5's), or {own + clip} (and "
            "CLIP's)"
        )
    return Halves(embeddings[..., :own], embeddings[..., own:] if given > own else None)


def pooled(
    texts: Texts,
    words: list[str],
    ids: Int[Tensor, "b n"],
    vectors: Float[Tensor, "b n e"] | None,
    at: Bool[Tensor, "b n"] | None,
) -> Float[Tensor, "b p"]:
    """CLIP's pooled vector of texts, with ``vectors`` in the place of the fillers that T5 has ``at`` some of its ``ids``."""
    clip = texts.ids(words, CLIP)
    if vectors is None or at is None:
        return texts.read(CLIP, clip, None, None).pooler_output
    rows, columns, sources = _meeting(texts, clip, ids, at)
    exchanged = torch.zeros_like(clip, dtype=torch.bool).index_put((rows, columns), torch.ones_like(rows).bool())
    placed = vectors.new_zeros((*clip.shape, vectors.shape[-1])).index_put((rows, columns), vectors[rows, sources])
    return texts.read(CLIP, clip, placed, exchanged).pooler_output


def _meeting(
    texts: Texts, clip: Int[Tensor, "b m"], ids: Int[Tensor, "b n"], at: Bool[Tensor, "b n"]
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Rows, CLIP's places and T5's places of the fillers that both read; CLIP may have cut a long text off before one.

    Raises:
        ExpungeError: if CLIP reads another word where a filler stands.
    """
    word = texts.backbone.filler
    own, theirs = int(_first(texts, T5, word)), int(_first(texts, CLIP, word))
    found: list[tuple[int, int, int]] = []
    for row, source in torch.nonzero(at & (ids == own)).tolist():
        before = texts.spell(ids[row : row + 1, :source])
        (whole,) = texts.tokenizer(CLIP)(before, truncation=False, verbose=False).input_ids
        column = len(whole) - 1  # where its end token stands, the next word does
        if column >= clip.shape[1] - 1:
            continue
        if int(clip[row, column]) != theirs:
            raise ExpungeError(
                f"a learned word after '{before[0]}' is no word of its own to CLIP: expected spaces around it"
            )
        found.append((row, column, source))
    return tuple(torch.tensor(found, dtype=torch.long, device=ids.device).view(-1, 3).unbind(1))  # pyright: ignore[reportReturnType]
