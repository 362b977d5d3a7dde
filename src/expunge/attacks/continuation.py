"""Continuation: the original model begins an image, and the edited one must finish it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.attack import Attack, Provocation
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.cost import Cost
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.knowledge import Kind
from expunge.core.query import Query, Start
from expunge.core.victim import Access, WhiteBox


@final
@dataclass(frozen=True, kw_only=True)
class Continuation(Attack[WhiteBox]):
    r"""Sample the first steps with the original model, and go on with the edited one from there.

    Lu et al. 2025 (2505.17013), changes of the trajectory. It asks whether the edited model only steers away early, when an
    image is laid out. Steps are deterministic (DDIM, or Euler's for a flow), from the query's own noise. The latents
    :math:`x_k` are stored as those of an image to image: as the :math:`x_0` which, with the query's own noise added, is
    :math:`x_k`. So any sampler that begins there begins at the original's trajectory.
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
    draws: ClassVar[bool] = False
    knows: ClassVar[Mapping[str, Kind]] = {}
    tuning: ClassVar[Sequence[str]] = ("share",)
    share: float = 0.25
    """Share of a query's steps that the original does, between 0 and 1; rounded up to whole steps."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ExpungeError(f"continuation's share is {self.share}: expected more than 0, and less than 1")

    @override
    def provoke(self, victim: WhiteBox, task: Task, queries: Sequence[Query]) -> Provocation:
        names = {target.name for target in task.targets}
        return Provocation(queries=[self._begun(victim.backbone, q) for q in queries if q.label in names])

    @torch.no_grad()
    def _begun(self, backbone: Backbone, query: Query) -> Query:
        """A query whose first steps are done."""
        done = self._steps(query.steps)
        times, noise = backbone.timesteps(query.steps), backbone.noise(query.seed)
        x = noise
        with backbone.bare():
            cond = backbone.encode([query.prompt])
            null = backbone.encode([query.negative]) if query.negative else backbone.unconditional()
            for step in range(done):
                out = backbone.guided(x, times[step], step, cond, null, query.guidance, {}).combined
                x = backbone.step_back(x, out, times[step], query.steps)
        left = (query.steps - done) / query.steps
        return replace(query, start=Start(image=_origin(backbone, x, noise, times[done])[0], strength=left))

    def _steps(self, steps: int) -> int:
        """Whole steps of a query that the original does."""
        done = -int(-self.share * steps // 1)
        if done >= steps:
            raise ExpungeError(
                f"continuation's share {self.share} of {steps} steps leaves none to the edited model: expected less, or "
                "queries of more steps"
            )
        return done

    @override
    def foreseen(self, targets: int, queries: int, steps: int) -> Cost:
        return Cost(forward=2 * queries * self._steps(steps))


def _origin(
    backbone: Backbone, x: Float[Tensor, "1 c h w"], noise: Float[Tensor, "1 c h w"], t: int | float
) -> Float[Tensor, "1 c h w"]:
    """The latents that become ``x`` when ``noise`` is added to them at timestep ``t``."""
    at = torch.full((len(x),), t, device=x.device)
    nothing = torch.zeros_like(x)
    return (x - backbone.add_noise(nothing, noise, at)) / backbone.add_noise(torch.ones_like(x), nothing, at)
