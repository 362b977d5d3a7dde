"""An attack of your own: one frozen dataclass. Put the file into `expunge/attacks`, or announce it as an entry point there.

This one can only ask for images. It puts random words around a target and keeps those with which a judge sees it best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from expunge.backbones import load
from expunge.core.attack import Attack, Provocation
from expunge.core.catalog import Paper
from expunge.core.eraser import Task
from expunge.core.knowledge import Kind
from expunge.core.query import Query, queries
from expunge.core.victim import Access, BlackBox
from expunge.testing import check_attack


@final
@dataclass(frozen=True, kw_only=True)
class OtherWords(Attack[BlackBox]):
    """Put random words around each target, ask for an image of each try, and go on with the best one.

    Deviations: none known.
    """

    paper: ClassVar[Paper] = Paper("An example", "nobody", 2026, "")
    access: ClassVar[Access] = "queries"
    knows: ClassVar[Mapping[str, Kind]] = {"judge": "oracles"}
    tuning: ClassVar[Sequence[str]] = ("words", "tries")
    words: tuple[str, ...] = ("old", "small", "red", "blue", "bright", "wooden", "simple", "drawing", "view", "icon")
    tries: int = 4
    judge: str = "testbed:network=b"
    """Who looks at the images; a plan refuses one that also reports."""

    def budget(self, targets: int, queries: int) -> int:
        return targets * self.tries

    def provoke(self, victim: BlackBox, task: Task, queries: Sequence[Query]) -> Provocation:
        best = {target.name: self._best(victim, task, target.name, queries) for target in task.targets}
        return Provocation(queries=[replace(q, prompt=best[q.label]) for q in queries if q.label in best])

    def _best(self, victim: BlackBox, task: Task, target: str, queries: Sequence[Query]) -> str:
        first = next(q for q in queries if q.label == target)
        drawn = torch.randint(len(self.words), (self.tries, 2), generator=task.generator("words", target)).tolist()
        asked = [replace(first, prompt=f"{self.words[one]} {target} {self.words[other]}") for one, other in drawn]
        return asked[int(victim.verdicts(victim.images(asked), target).argmax())].prompt


if __name__ == "__main__":
    asked = queries([("image of a church", "church")], 1, 0, 4.0, 4)
    answer = check_attack(OtherWords(), load("testbed"), asked)
    print(f"every promise kept; it asks for '{answer.queries[0].prompt}'")
