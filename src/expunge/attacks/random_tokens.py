"""Random tokens: the control that puts words before a prompt without learning which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from typing_extensions import override

from expunge.core.attack import Attack, Provocation
from expunge.core.catalog import Paper
from expunge.core.eraser import Task
from expunge.core.errors import check_counts
from expunge.core.knowledge import Kind
from expunge.core.query import Query
from expunge.core.victim import Access, GrayBox, surest


@final
@dataclass(frozen=True, kw_only=True)
class RandomTokens(Attack[GrayBox]):
    """Put random tokens before each prompt, and keep the prompt whose image an oracle finds most like the concept.

    No paper's: a control, which an attack on words that asks for as many images should beat. Tokens are drawn from the whole
    vocabulary, each alike, and written out; the first try is the prompt as it is. The seed stays. The oracle must be another
    network than the judge that reports.
    Deviations: none known.
    """

    paper: ClassVar[Paper] = Paper("A control of this project", "expunge", 2026, "")
    access: ClassVar[Access] = "text encoder"
    shares: ClassVar[bool] = False
    spends: ClassVar[str] = "tries"
    returns: ClassVar[str] = "with random tokens before the prompt, the best of {tries}"
    knows: ClassVar[Mapping[str, Kind]] = {"oracle": "oracles"}
    tuning: ClassVar[Sequence[str]] = ("tries", "tokens")
    oracle: str = "testbed:network=b"
    """The judge that it asks."""
    tries: int = 8
    """Prompts tried for each query, its own among them."""
    tokens: int = 3
    """Tokens before a prompt, at most: from one to so many."""

    def __post_init__(self) -> None:
        check_counts("random-tokens", tries=self.tries, tokens=self.tokens)

    @override
    def budget(self, targets: int, queries: int) -> int:
        return self.tries * queries

    @override
    def provoke(self, victim: GrayBox, task: Task, queries: Sequence[Query]) -> Provocation:
        answers: list[Query] = []
        for target in task.targets:
            for query in (q for q in queries if q.label == target.name):
                generator = task.generator("random-tokens", *query.own)
                drawn = (
                    victim.spell(victim.random_texts(self.tries - 1, generator, self.tokens)) if self.tries > 1 else []
                )
                tried = [query, *(replace(query, prompt=f"{words} {query.prompt}") for words in drawn)]
                answers.append(surest(victim, tried, target.name))
        return Provocation(queries=answers)
