"""What an attack holds: a model that answers queries, its text encoder as well, or all of it; and no more than it asked for.

An object keeps no reference to what an attack has no access to: it holds functions that do one thing each. (Python hides
nothing from code that searches functions for what they enclose. This is a contract between honest parties, which tests check.)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.conditioning import Conditioning
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge
from expunge.core.query import LearnedWord, Query

Access = Literal["white box", "text encoder", "queries"]
"""What an attacker must hold: the edited model, the text encoder alone, or nothing but a way to ask for images."""
Draw = Callable[[Sequence[Query]], UInt8[Tensor, "n H W 3"]]
"""Makes an image for each query, by the model with the edits that are attached to it."""
TEXT = frozenset(
    [
        *("tokenize", "spell", "cut", "end", "embed", "encode", "encode_each", "encode_learned"),
        *("vocabulary", "random_texts", "unconditional"),
    ]
)
"""What of a backbone is its text encoder."""


class Victim(ABC):
    """What every attack can do: ask for images, as many as its budget allows, and for a judge's opinion of them."""

    @property
    @abstractmethod
    def learned_words(self) -> bool:
        """Whether a query may carry token embeddings that are in no vocabulary."""

    def __init__(self, draw: Draw, judges: Mapping[str, Judge], budget: int) -> None:
        """A model behind ``draw``, to be asked for ``budget`` images, and oracles by name."""
        self._draw = draw
        self._judges = {name: _opinion(judge) for name, judge in judges.items()}
        self.budget = budget
        """Images that may be asked for."""
        self.asked = 0
        """Images that have been."""

    @final
    def images(self, queries: Sequence[Query]) -> UInt8[Tensor, "n H W 3"]:
        """An image for each query, in order.

        Raises:
            ExpungeError: if these are more than the budget has left, or a query holds what its access does not have.
        """
        if self.asked + len(queries) > self.budget:
            raise ExpungeError(
                f"an attack asks for {len(queries)} images after {self.asked}: expected no more than its budget, {self.budget}"
            )
        for query in queries:
            latents = query.start is not None and query.start.image.is_floating_point()
            if (query.learned is not None or latents) and not self.learned_words:
                raise ExpungeError(
                    f"query '{query.prompt}' holds {'latents' if latents else 'a learned word'}: expected words, and perhaps "
                    "an image to start from, of an attack that can only ask"
                )
        self.asked += len(queries)
        return self._draw(queries)

    @final
    def verdicts(self, images: UInt8[Tensor, "b H W 3"], concept: str, oracle: str | None = None) -> Float[Tensor, "b"]:
        """How sure an oracle is, from 0 to 1, that each image shows ``concept``; the attack's first one if not named.

        Raises:
            ExpungeError: if the attack has no such oracle, or it does not know the concept.
        """
        name = next(iter(self._judges), None) if oracle is None else oracle
        if name is None or name not in self._judges:
            known = ", ".join(self._judges) or "none"
            raise ExpungeError(f"an attack asks the oracle '{name}': expected one that its knowledge names ({known})")
        return self._judges[name](images, concept)


def _opinion(judge: Judge) -> Callable[[Tensor, str], Tensor]:
    """A judge's confidence, without the judge."""

    def asked(images: Tensor, concept: str) -> Tensor:
        with torch.no_grad():
            return judge.confidence(images, concept)

    return asked


@final
class BlackBox(Victim):
    """A model that answers queries."""

    @property
    @override
    def learned_words(self) -> bool:
        return False


@final
class GrayBox(Victim):
    """A model that answers queries, and whose text encoder lies open; see `Backbone` for what its methods do."""

    @property
    @override
    def learned_words(self) -> bool:
        return True

    def __init__(self, backbone: Backbone, draw: Draw, judges: Mapping[str, Judge], budget: int) -> None:
        """The text encoder of ``backbone``, and what every victim has."""
        super().__init__(draw, judges, budget)
        self._text = _text_of(backbone)

    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "b n"]:
        """Token ids, padded to the model's prompt length."""
        return self._text("tokenize", prompts)

    def spell(self, ids: Int[Tensor, "b n"]) -> list[str]:
        """The text of each row of token ids, without its marks; tokenized again it may be other ids."""
        return self._text("spell", ids)

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """What the model does not read of each prompt."""
        return self._text("cut", prompts)

    def end(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
        """Position of each prompt's end token."""
        return self._text("end", ids)

    def embed(self, ids: Tensor) -> Float[Tensor, "b n d"]:
        """Token embeddings of ids ``[b, n]``, or of relaxed rows ``[b, n, vocabulary]``; differentiable."""
        return self._text("embed", ids)

    def encode(
        self,
        prompts: Sequence[str] | Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None = None,
        at: Bool[Tensor, "b n"] | None = None,
    ) -> Conditioning:
        """Encode prompts or ids, ``embeddings`` in the place of the ids' own (only ``at`` some, if given); differentiable."""
        return self._text("encode", prompts, embeddings, at)

    def encode_each(self, prompts: Sequence[str], learned: LearnedWord | None = None) -> Conditioning:
        """Encode prompts, perhaps with a learned word in them, a row for each."""
        return self._text("encode_each", prompts, learned)

    def encode_learned(self, prompts: Sequence[str], word: str, vectors: Float[Tensor, "k d"]) -> Conditioning:
        """Encode prompts in which ``word`` is read as the token embeddings ``vectors``; differentiable in those."""
        return self._text("encode_learned", prompts, word, vectors)

    def unconditional(self) -> Conditioning:
        """What guidance is guided away from."""
        return self._text("unconditional")

    def random_texts(self, rows: int, generator: torch.Generator, most: int = 3) -> Int[Tensor, "b n"]:
        """Token ids of ``rows`` texts of one to ``most`` random tokens each."""
        return self._text("random_texts", rows, generator, most)

    @property
    def vocabulary(self) -> int:
        """Tokens that `embed` knows."""
        return self._text("vocabulary")


def _text_of(backbone: Backbone) -> Callable[..., Any]:
    """Does what belongs to the text encoder, by name, and nothing else."""

    def done(name: str, *args: Any) -> Any:
        if name not in TEXT:
            raise ExpungeError(f"an attack asks a text encoder for '{name}': expected one of {', '.join(sorted(TEXT))}")
        part = getattr(backbone, name)
        return part(*args) if callable(part) else part

    return done


@final
class WhiteBox(Victim):
    """A model of which the attack holds everything, with the edits that are attached to it.

    The budget counts what is asked by `images`; the denoiser's evaluations count as cost.
    """

    @property
    @override
    def learned_words(self) -> bool:
        return True

    def __init__(self, backbone: Backbone, draw: Draw, judges: Mapping[str, Judge], budget: int) -> None:
        """All of ``backbone``, and what every victim has."""
        super().__init__(draw, judges, budget)
        self.backbone = backbone


def surest(lent: Victim, queries: Sequence[Query], concept: str) -> Query:
    """The query whose image the first oracle is surest shows ``concept``; the earliest of equal ones.

    Raises:
        ExpungeError: if the budget has fewer images left, or the attack has no oracle that knows the concept.
    """
    return queries[int(torch.argmax(lent.verdicts(lent.images(queries), concept)))]


def victim(access: str, backbone: Backbone, draw: Draw, judges: Mapping[str, Judge], budget: int) -> Victim:
    """What an attack of this ``access`` (see `Access`) holds of ``backbone``.

    Raises:
        ExpungeError: for an unknown access.
    """
    if access == "queries":
        return BlackBox(draw, judges, budget)
    if access == "text encoder":
        return GrayBox(backbone, draw, judges, budget)
    if access == "white box":
        return WhiteBox(backbone, draw, judges, budget)
    raise ExpungeError(f"an attack of access '{access}': expected white box, text encoder or queries")
