"""An attack: looks for what brings an erased concept back."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar, final

import torch

from expunge.core.catalog import Paper
from expunge.core.concept import Concept, named
from expunge.core.cost import Cost
from expunge.core.edit import Edit
from expunge.core.eraser import Task, Wish
from expunge.core.errors import ExpungeError
from expunge.core.knowledge import Kind, Knowledge, of_settings
from expunge.core.query import Query, Shot
from expunge.core.victim import Access, Victim

V = TypeVar("V", bound=Victim, contravariant=True)


@final
@dataclass(frozen=True, kw_only=True)
class Provocation:
    """What an attack came up with."""

    queries: Sequence[Query]
    """What to ask the model for."""
    edit: Edit | None = None
    """A change to the model, on top of its edits: that of an attack which trains it again."""
    dtype: str | None = None
    """The precision that the model is run in, by torch's name (``float16``), for an attack which changes it."""

    def __post_init__(self) -> None:
        kind = None if self.dtype is None else getattr(torch, self.dtype, None)
        if self.dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
            raise ExpungeError(f"an attack changes the precision to '{self.dtype}': expected one such as float16")
        if self.edit is not None and self.edit.private:
            raise ExpungeError("an attack answers with a private key: expected an edit that is no key")


class Attack(ABC, Generic[V]):
    """A method of attack. Its queries are generated and judged by other rooms: an attack never decides that it won.

    Subclasses are frozen keyword-only dataclasses; their fields are its settings, with the paper's defaults. `access` says what
    it must hold, and the victim that it gets has just that: ``Attack[BlackBox]`` for ``queries``, ``Attack[GrayBox]`` for
    ``text encoder``, ``Attack[WhiteBox]`` for ``white box``.
    """

    paper: ClassVar[Paper]
    access: ClassVar[Access]
    knows: ClassVar[Mapping[str, Kind]]
    """Settings that tell the attack something beside its targets' names, and what; empty if none does."""
    tuning: ClassVar[Sequence[str]]
    """The other settings, which only say how it works; those that are in `TUNING` need not be named."""
    version: ClassVar[int] = 1
    """Raised when the same settings begin to give other queries, so that stored ones are not taken for them."""
    draws: ClassVar[bool] = True
    """Whether it draws random numbers, so that another seed gives another answer."""
    keeps_seeds: ClassVar[bool] = True
    """Whether its queries have the seeds of those it was given."""
    own_prompts: ClassVar[bool] = False
    """Whether it asks with prompts of its own: of the queries that it is given it heeds nothing but label and sampling."""
    shares: ClassVar[bool] = True
    """Whether all its queries for a target share what it finds, a word or a change of the weights: their images stand or fall
    together. Else what it does for a prompt hangs on that prompt alone."""
    at_once: ClassVar[bool] = False
    """Whether what its queries share is one thing for all targets, so that a run is a single find however many there are."""
    per_prompt: ClassVar[bool] = False
    """Where they do not all share it, whether those with one prompt do: its images have the one text that is found for it."""
    on_original: ClassVar[bool] = False
    """Whether all that it evaluates is of the model without its edits."""
    files: ClassVar[Sequence[str]] = ()
    """Settings that name a file whose content its answer depends on; see `files_of`."""
    spends: ClassVar[str] = ""
    """The setting, a whole number, that a smaller budget lowers: updates, generations, tries; empty for an attack without."""
    returns: ClassVar[str] = ""
    """How it brings a concept back, to follow "returns", with settings in braces: ``in {tries} tries``; its name if empty."""

    sends_pictures: ClassVar[bool] = False
    """Whether its queries start from pictures of the target, which any model finishes where they are noised little."""

    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[Wish]]:
        """Images it wants, by role: a wish for each; the caller makes them with the original model."""
        return {}

    def check(self, targets: Sequence[Concept]) -> None:
        """Refuse settings that cannot be used on such targets, before a model is opened or anything is made.

        Raises:
            ExpungeError: naming the setting.
        """
        return

    def asks(self, targets: Sequence[Concept], queries: int) -> int:
        """Queries that it answers with, given so many for its targets."""
        return queries

    def knowledge(self) -> Knowledge:
        """What its settings told it; the judges that it asks on the way are its ``oracles``."""
        return of_settings(self)

    def budget(self, targets: int, queries: int) -> int:
        """Images that it may ask the attacked model for, on so many targets and queries for them; more are refused."""
        return 0

    def fits(self, edits: Sequence[Edit]) -> None:
        """Refuse edits that it can do nothing about, before anything is made for it.

        Raises:
            ExpungeError: naming one, and what it can attack.
        """

    @abstractmethod
    def provoke(self, victim: V, task: Task, queries: Sequence[Query]) -> Provocation:
        """Adversarial versions of those ``queries`` that ask for a target of ``task`` (by their label).

        They are made against the model with the edits that are attached to it, which is left as it was.
        """

    def cost(self, targets: int, queries: int) -> Cost:
        """Evaluations of the denoiser that it will take, in expectation, beside the images that it wants or asks for."""
        return Cost()

    def reads(self, targets: int, prompts: int) -> int:
        """Texts that it encodes for so many different prompts, where that is what takes its time."""
        return 0

    def foreseen(self, targets: int, queries: int, steps: int, predictions: int) -> Cost:
        """`cost`, with that of the images in its budget, of so many denoising steps each, and so many predictions a step."""
        return self.cost(targets, queries) + Cost(forward=predictions * steps * self.budget(targets, queries))


def wished(targets: Sequence[Concept], prompts: Sequence[str], count: int) -> dict[str, list[str]]:
    """Wishes for ``count`` images of each target, made with ``prompts`` in turn; {} in one is the target's name."""
    return {t.name: [prompts[i % len(prompts)].replace("{}", t.name) for i in range(count)] for t in targets}


def image_for(query: Query, shots: Sequence[Shot], number: int) -> Shot:
    """The image of its target that a query is aimed at; ``number`` chooses among several.

    One that was made for its prompt and seed; if there is none, one that was made for its prompt; otherwise any.
    """
    same = [s for s in shots if s.prompt == query.prompt]
    own = [s for s in same if s.seed == query.seed]
    fitting = own or same or shots
    return fitting[number % len(fitting)]


def reworded(prompt: str, names: str | Sequence[str], word: str, otherwise: Literal["front", "end"]) -> str:
    """The prompt with ``word`` in the place of each of ``names``; in front of a prompt that has none of them, or at its end."""
    known = [names] if isinstance(names, str) else sorted(names, key=len, reverse=True)
    exchanged = re.sub("|".join(named(name).pattern for name in known), lambda _: word, prompt, flags=re.IGNORECASE)
    if exchanged != prompt:
        return exchanged
    return (f"{word} {prompt}" if otherwise == "front" else f"{prompt} {word}").strip()
