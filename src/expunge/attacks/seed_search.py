"""Seed search: the control that changes no word, and only tries more noise."""

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
from expunge.core.victim import Access, BlackBox, surest


@final
@dataclass(frozen=True, kw_only=True)
class SeedSearch(Attack[BlackBox]):
    """Ask for the same prompt with other seeds, and keep the one whose image an oracle finds most like the concept.

    No paper's: a control, which an attack that asks for as many images should beat. What is left of a concept in one image of
    a hundred comes back by asking a hundred times. The oracle must be another network than the judge that reports.
    Deviations: none known.
    """

    paper: ClassVar[Paper] = Paper("A control of this project", "expunge", 2026, "")
    access: ClassVar[Access] = "queries"
    shares: ClassVar[bool] = False
    spends: ClassVar[str] = "tries"
    returns: ClassVar[str] = "to whoever asks {tries} times"
    keeps_seeds: ClassVar[bool] = False
    knows: ClassVar[Mapping[str, Kind]] = {"oracle": "oracles"}
    tuning: ClassVar[Sequence[str]] = ("tries",)
    oracle: str = "testbed:network=b"
    """The judge that it asks."""
    tries: int = 8
    """Seeds tried for each query, its own among them."""

    def __post_init__(self) -> None:
        check_counts("seed-search", tries=self.tries)

    @override
    def budget(self, targets: int, queries: int) -> int:
        return self.tries * queries

    @override
    def provoke(self, victim: BlackBox, task: Task, queries: Sequence[Query]) -> Provocation:
        answers: list[Query] = []
        for target in task.targets:
            for query in (q for q in queries if q.label == target.name):
                others = [task.number("seed-search", *query.own, i) for i in range(1, self.tries)]
                tried = [replace(query, seed=seed) for seed in (query.seed, *others)]
                answers.append(surest(victim, tried, target.name))
        return Provocation(queries=answers)
