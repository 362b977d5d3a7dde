"""Where training points come from: partial guided trajectories, or a bank that keeps every point of whole ones."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, check_counts
from expunge.core.guidance import Guidance


def step_at(backbone: Backbone, t: int | float, steps: int) -> int:
    """Which of so many denoising steps, from 0, has the timestep ``t`` or the next below: families space them differently."""
    times = backbone.timesteps(steps)
    return next((step for step, time in enumerate(times) if time <= t + 1), steps - 1)


class Points(NamedTuple):
    """A batch of training points."""

    x: Float[Tensor, "b c h w"]
    t: Real[Tensor, "b"]
    concept: Int[Tensor, "b"]
    """Row of the conditioning that each point's trajectory followed."""
    cond: Float[Tensor, "b c h w"] | None = None
    """The frozen model's prediction with that conditioning, where the trajectory left it behind."""
    null: Float[Tensor, "b c h w"] | None = None
    """The frozen model's prediction with the empty prompt, likewise."""
    also: Float[Tensor, "b c h w"] | None = None
    """The frozen model's prediction with one more text, where a bank was asked to keep it."""

    def rows(self, which: Int[Tensor, "n"]) -> "Points":
        """Some of the points."""
        return Points(*(part if part is None else part[which.to(part.device)] for part in self))  # pyright: ignore

    @staticmethod
    def joined(parts: Sequence["Points"]) -> "Points":
        """One batch of several, which know the same of their points."""
        if len(parts) == 1:
            return parts[0]
        return Points(*(None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True)))  # pyright: ignore


class Source(ABC):
    """Draws training points; the same for the same update."""

    @abstractmethod
    def draw(self, update: int, batch: int) -> Points:
        """The points of an update."""


@final
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How training points are made: methods.md 0.2 by default, as the papers do."""

    arm: Literal["online-student", "online-frozen", "bank"] = "online-student"
    """Where points come from: partial trajectories of the model being trained, of the frozen one, or a bank of whole ones."""
    sampling_guidance: float = 3.0
    """Scale of classifier-free guidance along trajectories; a distilled model is told it."""
    sampling_steps: int = 50
    """Steps of a whole trajectory."""
    reuse: int = 1
    """Times a bank's point is used before new ones are made."""
    trajectories: int = 16
    """Trajectories a bank holds at a time (as many more as give each text the same number); used in random order."""

    def __post_init__(self) -> None:
        check_counts("sampling", sampling_steps=self.sampling_steps, reuse=self.reuse, trajectories=self.trajectories)
        if self.arm == "bank" and self.sampling_guidance <= 1:
            raise ExpungeError(
                f"sampling_guidance is {self.sampling_guidance:g}, which is none: expected more than 1 for a bank, which "
                "keeps both predictions"
            )

    def source(
        self,
        backbone: Backbone,
        cond: Conditioning,
        null: Conditioning,
        task: Task,
        purpose: str,
        points: int,
        also: Conditioning | None = None,
    ) -> Source:
        """A source of ``points`` points in all, on trajectories that follow the rows of ``cond``.

        ``purpose`` names its random numbers. ``also`` is one more text for each row of ``cond``, whose prediction a bank keeps
        where it `keeps_more`.

        Raises:
            ExpungeError: for a bank on a model with guidance edits, which would be steered and not the model's own; or on a
                distilled one, which has no pair of predictions to keep.
        """
        if self.arm != "bank":
            return Online(self, backbone, cond, null, task, purpose)
        if backbone.supports("distilled"):
            raise ExpungeError(
                f"a bank on {backbone.name}, whose trajectories leave no pair of predictions: expected arm online-student or "
                "online-frozen"
            )
        steering = next((e for e in backbone.edits if isinstance(e, Guidance)), None)
        if steering is not None:
            raise ExpungeError(f"a bank on a model with guidance edit {steering.id}: expected weights edits only")
        return Bank(self, backbone, cond, null, task, purpose, points, also if self.keeps_more else None)

    @property
    def keeps_more(self) -> bool:
        """Whether a bank keeps a further text's prediction: where points are used again, which would ask for it again."""
        return self.arm == "bank" and self.reuse > 1

    def pools(self, points: int, rows: int) -> list[int]:
        """Trajectories of each pool of a bank that gives ``points`` points.

        All rows have as many in each, so the last pool may have points to spare.
        """
        whole = -(-max(self.trajectories, rows) // rows) * rows
        each = self.sampling_steps * self.reuse
        full, rest = divmod(points, whole * each)
        return [whole] * full + ([-(-rest // (rows * each)) * rows] if rest else [])

    def sampled_from(self, student: AbstractContextManager[None]) -> AbstractContextManager[None]:
        """The context to draw points in: that of the ``student``, where they are drawn from it, or the model's own."""
        return student if self.arm == "online-student" else nullcontext()

    def cost(self, points: int, known: int, rows: int, also: int = 0) -> Cost:
        """Expected cost of so many points on trajectories of so many rows, and ``known`` (0 to 2) frozen predictions at each.

        (The concept's and the empty prompt's, which a bank has already.) ``also``: predictions of further texts at each, which
        a bank `keeps_more` of, or makes at every use. A distilled model (FLUX), which is told the scale, takes half of what its
        trajectories are said to.
        """
        pair = 1 if self.sampling_guidance <= 1 else 2
        if self.arm != "bank":
            return Cost(forward=round(points * (pair * (self.sampling_steps - 1) / 2 + known + also)))
        held = sum(self.pools(points, rows)) * self.sampling_steps
        return Cost(forward=held * pair + (held if self.keeps_more else points) * also)


@final
class Online(Source):
    """Each point ends a partial trajectory of its own: 49 evaluations for one point at 50 steps, on average."""

    def __init__(
        self, settings: Sampling, backbone: Backbone, cond: Conditioning, null: Conditioning, task: Task, purpose: str
    ) -> None:
        """Follow the rows of ``cond`` with the model as it stands when `draw` is called."""
        self.settings, self.backbone, self.cond, self.null = settings, backbone, cond, null
        self.task, self.purpose = task, purpose

    @override
    @torch.no_grad()
    def draw(self, update: int, batch: int) -> Points:
        generator = self.task.generator(self.purpose, "points", update)
        steps, scale = self.settings.sampling_steps, self.settings.sampling_guidance
        concept = torch.randint(0, len(self.cond.embeds), (batch,), generator=generator)
        stop = torch.randint(0, steps, (batch,), generator=generator)  # k of methods.md 0.2
        x = torch.cat([self.backbone.noise(self.task.number(self.purpose, update, row)) for row in range(batch)])
        concept, cond = concept.to(x.device), self.cond.rows(concept.to(x.device))
        times = self.backbone.timesteps(steps)
        ends, going, part = {0, *stop.tolist()}, concept, cond
        for step in range(int(stop.max())):
            if step in ends:  # else the same rows go on
                going = torch.nonzero(stop > step).flatten().to(x.device)
                part = cond.rows(going)
            out = self.backbone.guided(x[going], times[step], step, part, self.null, scale, {}).combined
            x = x.index_copy(0, going, self.backbone.step_back(x[going], out, times[step], steps))
        return Points(x, torch.tensor(times)[stop].to(x.device), concept)


@final
class Bank(Source):
    """Whole trajectories of the frozen model: every point is kept, with the two predictions that were made on the way.

    A point costs two evaluations instead of 49 and the two of its frozen targets. A pool of trajectories is made at a time, and
    its points are used ``reuse`` times each, in random order. Which points an update gets depends on its number alone, so an
    interrupted run goes on with the same ones.
    """

    def __init__(
        self,
        settings: Sampling,
        backbone: Backbone,
        cond: Conditioning,
        null: Conditioning,
        task: Task,
        purpose: str,
        points: int,
        also: Conditioning | None = None,
    ) -> None:
        """Follow the rows of ``cond``, taking turns, for ``points`` points, and keep what ``also`` predicts at them."""
        self.settings, self.backbone, self.cond, self.null = settings, backbone, cond, null
        self.task, self.purpose, self.also = task, purpose, also
        self.pools = settings.pools(points, len(cond.embeds))
        self.number = -1
        self.pool: Points | None = None
        self.order = torch.empty(0, dtype=torch.int64)

    @override
    def draw(self, update: int, batch: int) -> Points:
        full = self.pools[0] * self.settings.sampling_steps * self.settings.reuse
        parts: list[Points] = []
        first, end = update * batch, (update + 1) * batch
        while first < end:
            number, offset = divmod(first, full)
            size = self.pools[number] * self.settings.sampling_steps
            count = min(end - first, size * self.settings.reuse - offset)
            pool = self._filled(number)
            chosen = self.order[offset : offset + count]
            parts.append(pool.rows(chosen))
            first += count
        return Points.joined(parts)

    @torch.no_grad()
    def _filled(self, number: int) -> Points:
        """The points of pool ``number``."""
        if self.pool is not None and self.number == number:
            return self.pool
        self.pool = None  # before the next one takes its memory
        steps, scale = self.settings.sampling_steps, self.settings.sampling_guidance
        start = sum(self.pools[:number])
        rows = range(start, start + self.pools[number])
        x = torch.cat([self.backbone.noise(self.task.number(self.purpose, "trajectory", row)) for row in rows])
        concept = torch.tensor([row % len(self.cond.embeds) for row in rows], device=x.device)
        cond, also = self.cond.rows(concept), None if self.also is None else self.also.rows(concept)
        xs: list[Tensor] = []
        conds: list[Tensor] = []
        nulls: list[Tensor] = []
        more: list[Tensor] = []
        times = self.backbone.timesteps(steps)
        for index, t in enumerate(times):
            guided = self.backbone.guided(x, t, index, cond, self.null, scale, {})
            if guided.null is None:
                raise ExpungeError("a bank without guidance: expected sampling_guidance above 1")
            xs.append(x)
            conds.append(guided.cond)
            nulls.append(guided.null)
            if also is not None:
                more.append(self.backbone.predict(x, t, also))
            x = self.backbone.step_back(x, guided.combined, t, steps)
        t = torch.tensor(times, device=x.device).repeat_interleave(len(x))
        kept = torch.cat(more) if more else None
        self.pool = Points(torch.cat(xs), t, concept.repeat(steps), torch.cat(conds), torch.cat(nulls), kept)
        self.order = torch.cat(
            [
                torch.randperm(len(t), generator=self.task.generator(self.purpose, "order", number, use))
                for use in range(self.settings.reuse)
            ]
        )
        self.number = number
        return self.pool
