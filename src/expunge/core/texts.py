"""Texts by way of a model: learned words in prompts, texts read once each, and random texts."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.core.conditioning import Conditioning
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import LearnedWord

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone


class Spread(NamedTuple):
    """Where token embeddings lie."""

    mean: Float[Tensor, "d"]
    std: Float[Tensor, "d"]


def spread(backbone: "Backbone") -> Spread:
    """Where the token embeddings of a vocabulary lie."""
    ids = torch.arange(backbone.vocabulary, device=backbone.device)[None]
    known = backbone.embed(ids)[0].float()
    return Spread(known.mean(0), known.std(0))


def words_of(backbone: "Backbone", text: str) -> slice:
    """Where the tokens of a text stand between its marks."""
    return slice(backbone.first, int(backbone.end(backbone.tokenize([text]))[0]))


def joined(backbone: "Backbone", words: Sequence[str], separator: str) -> str:
    """Words as one text, which the model reads whole.

    Raises:
        ExpungeError: if it does not, naming the first that it does not read: a concept that is cut off would be left as it is.
    """
    for count in range(1, len(words) + 1):
        if backbone.cut([separator.join(words[:count])])[0]:
            raise ExpungeError(
                f"{len(words)} words as one text are more than {backbone.name}'s text encoder reads, which ends in "
                f"'{words[count - 1]}', number {count}: expected fewer targets at a time, or shorter ones"
            )
    return separator.join(words)


def warn_of_t5(backbone: "Backbone", method: str) -> None:
    """Say that a method which trains CLIP's text encoders leaves the concept in what another one reads, if there is one."""
    if backbone.supports("t5"):
        warnings.warn(
            f"{method} trains CLIP's text encoders, and {backbone.name} reads prompts with T5 as well, which stays as it is: "
            "expect little of it (or use a method that trains the denoiser, such as esd)",
            ExpungeWarning,
            stacklevel=3,
        )


@torch.no_grad()
def empty_is_unconditional(backbone: "Backbone") -> bool:
    """Whether the empty prompt, read as prompts are, is what guidance is guided away from: not on SDXL as released (zeros).

    A method whose text is empty means the prompt. Only where the two are one may it take a trajectory's own prediction.
    """
    return torch.equal(backbone.encode([""]).embeds, backbone.unconditional().embeds)


def encode_each(backbone: "Backbone", prompts: Sequence[str], learned: LearnedWord | None = None) -> Conditioning:
    """Encode prompts; see `Backbone.encode_each`."""
    known = list(dict.fromkeys(prompts))
    words = None if learned is None else (learned.word, learned.vectors)
    encoded = backbone.encode(known) if words is None else encode_learned(backbone, known, *words)
    return encoded.rows(torch.tensor([known.index(prompt) for prompt in prompts], device=encoded.embeds.device))


def encode_learned(
    backbone: "Backbone", prompts: Sequence[str], word: str, vectors: Float[Tensor, "k d"]
) -> Conditioning:
    """Encode prompts in which ``word`` is read as ``vectors``; see `Backbone.encode_learned`."""
    k, filler = len(vectors), backbone.tokenize([backbone.filler])[0, backbone.first]
    fillers = " ".join([backbone.filler] * k)
    ids = backbone.tokenize([prompt.replace(word, fillers) for prompt in prompts])
    at = torch.zeros_like(ids, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        parts = prompt.split(word)
        for i in range(1, len(parts)):
            before = fillers.join(parts[:i])
            first = int(backbone.end(backbone.tokenize([before.rstrip()]))[0])
            at[row, first : first + k] = True
        alone = all(p[-1:].strip() == "" for p in parts[:-1]) and not any(p[:1].isalnum() for p in parts[1:])
        whole = int(at[row].sum()) == k * (len(parts) - 1) and bool((ids[row][at[row]] == filler).all())
        if len(parts) == 1 or not (alone and whole):
            raise ExpungeError(
                f"prompt '{prompt}' does not hold '{word}' as a word among those that the model reads: expected it once or "
                "more, with spaces around it"
            )
    vectors = vectors.to(ids.device)  # as a file has them, they lie on the CPU
    placed = vectors.new_zeros((*ids.shape, vectors.shape[1]))
    placed = placed.index_put(torch.where(at), vectors.repeat(int(at.sum()) // k, 1))
    return backbone.encode(ids, placed, at)


def random_texts(backbone: "Backbone", rows: int, generator: torch.Generator, most: int = 3) -> Int[Tensor, "b n"]:
    """Token ids of texts of random tokens; see `Backbone.random_texts`."""
    ids, first = backbone.tokenize([""]).repeat(rows, 1), backbone.first
    marks = set(ids[0].tolist())
    words = torch.tensor([i for i in range(backbone.vocabulary) if i not in marks])
    lengths = torch.randint(1, most + 1, (rows,), generator=generator).tolist()
    start, end = ids[0, :first].clone(), ids[0, first : first + 1].clone()
    for row, length in zip(ids, lengths, strict=True):
        drawn = words[torch.randint(0, len(words), (length,), generator=generator)].to(ids)
        row[: first + length + 1] = torch.cat([start, drawn, end])
    return ids
