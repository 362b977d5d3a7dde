"""Continuation: the original model begins an image, and the edited one must finish it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from typing_extensions import override

from expunge.core.attack import Attack, Provocation
from expunge.core.catalog import Paper
from expunge.core.cost import Cost
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.knowledge import Kind
from expunge.core.query import Query
from expunge.core.victim import Access, WhiteBox


@final
@dataclass(frozen=True, kw_only=True)
class Continuation(Attack[WhiteBox]):
    r"""Sample the first steps with the original model, and go on with the edited one from there.

    Lu et al. 2025 (2505.17013), changes of the trajectory. It asks whether the edited model only steers away early, when an
    image is laid out. Both use the model's own sampler, from the query's own noise. The latents :math:`x_k` are stored as those
    of an image to image: as the :math:`x_0` which, with the query's own noise added at that step, is :math:`x_k`
    (`Backbone.begun`). So a sampler of one step's memory goes on exactly; one that looks back (DPM-Solver++, PNDM) begins
    its memory anew.
    Deviations: Lu et al. change the noise along the trajectory; handing over half-way is this project's reading of it.
    """

    paper: ClassVar[Paper] = Paper(
        "When Are Concepts Erased From Diffusion Models?",
        "Lu et al.",
        2025,
        "2505.17013",
        "https://github.com/kevinlu4588/WhenAreConceptsErased",
    )
    access: ClassVar[Access] = "white box"
    shares: ClassVar[bool] = False
    returns: ClassVar[str] = "when the original model does the first {share:.0%} of the steps"
    draws: ClassVar[bool] = False
    on_original: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {}
    tuning: ClassVar[Sequence[str]] = ("share",)
    share: float = 0.25
    """Share of a query's steps that the original does, between 0 and 1; rounded up to whole steps."""

    @property
    @override
    def version(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2 for shares that no float is: since then a whole number of steps stays one."""
        return 1 if (self.share * 1024).is_integer() else 2

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ExpungeError(f"continuation's share is {self.share}: expected more than 0, and less than 1")

    @override
    def provoke(self, victim: WhiteBox, task: Task, queries: Sequence[Query]) -> Provocation:
        names = {target.name for target in task.targets}
        asked = [query for query in queries if query.label in names]
        done = {query.steps: self._steps(query.steps) for query in asked}  # refused before anything is sampled
        with victim.backbone.bare():
            starts = [victim.backbone.begun(query, done[query.steps]) for query in asked]
        return Provocation(queries=[replace(q, start=start) for q, start in zip(asked, starts, strict=True)])

    def _steps(self, steps: int) -> int:
        """Whole steps of a query that the original does."""
        done = math.ceil(round(self.share * steps, 9))  # 0.14 of 50 is 7, though 0.14 * 50 is a little more
        if done >= steps:
            raise ExpungeError(
                f"continuation's share {self.share} of {steps} steps leaves none to the edited model: expected less, or "
                "queries of more steps"
            )
        return done

    @override
    def foreseen(self, targets: int, queries: int, steps: int, predictions: int) -> Cost:
        return Cost(forward=predictions * queries * self._steps(steps))
