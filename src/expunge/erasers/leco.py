"""LECO: a low-rank adapter that answers a concept as if guided away from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import phrases
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Step, Task, counted
from expunge.core.errors import check_counts, check_positive
from expunge.core.knowledge import Kind
from expunge.core.texts import empty_is_unconditional
from expunge.maths.training import Decay, Learned, Optimizer, mse, numbers, pace, thin
from expunge.maths.trajectories import Points, Sampling


@final
@dataclass(frozen=True, kw_only=True)
class LECO(Eraser):
    r"""Train a LoRA to answer a concept with the neutral text's prediction, guided away from the concept.

    .. math:: \big\| \epsilon_{\theta,M}(x_t, c) - [\epsilon_\theta(x_t, c_n)
        - g (\epsilon_\theta(x_t, c) - \epsilon_\theta(x_t, \varnothing))] \big\|^2

    ESD's idea as an adapter, of the rank and rate of p1atdev/LECO; methods.md A8. With several targets each point draws one.
    A negative ``negative_guidance`` strengthens the concept instead. Ignores the retain list.
    Deviations: beside every Linear and convolution layer of the transformer blocks (the program offers several choices);
    points are labelled with their own timestep.
    """

    paper: ClassVar[Paper] = Paper("LECO", "p1atdev", 2023, "", "https://github.com/p1atdev/LECO")
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {"neutral": "anchor", "templates": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("negative_guidance",)
    rank: int = 4
    """Width of the adapter, r."""
    alpha: float = 1.0
    """The change is scaled by alpha / r."""
    neutral: str = ""
    """What targets become when they name no anchor of their own, c_n."""
    negative_guidance: float = 1.0
    """How far beyond the neutral text it is guided away, g."""
    templates: tuple[str, ...] = ("{}",)
    """Phrases that targets are put into; each point draws one."""
    lr: float = 1e-4
    """Learning rate."""
    optimizer: Optimizer = "adamw"
    """Adam with decoupled weight decay (0.01), without, or plain gradient descent."""
    decay: Decay = "none"
    """How the learning rate falls."""
    iterations: int = 500
    """Updates."""
    batch: int = 1
    """Points an update."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_counts("leco", rank=self.rank, iterations=self.iterations, batch=self.batch)
        check_positive("leco", alpha=self.alpha, lr=self.lr)
        phrases(self.templates, "")

    @override
    def stronger(self, times: float) -> "LECO":
        return replace(self, iterations=counted(self.iterations, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        texts = [
            (p, self.neutral if t.anchor is None else t.anchor)
            for t in task.targets
            for p in phrases(self.templates, t.name)
        ]
        with torch.no_grad():
            concepts, null = backbone.encode([p for p, _ in texts]), backbone.unconditional()
            empty = not any(n for _, n in texts) and empty_is_unconditional(backbone)
            neutral = None if empty else backbone.encode([n for _, n in texts])
        start = thin(backbone, backbone.layers("transformer"), self.rank, task.generator("leco"))
        student = Learned(start, self.lr, self.optimizer)
        source = self.sampling.source(backbone, concepts, null, task, "leco", self.iterations * self.batch)
        first, scale = 0, self.alpha / self.rank
        if resume is not None:
            student.load("student", resume)
            first = int(resume["next"])
        for index in range(first, self.iterations):
            with self.sampling.sampled_from(backbone.adapted(student.values(), scale)):
                points = source.draw(index, self.batch)
            wanted = self._goal(backbone, points, concepts, null, neutral)
            with backbone.adapted(student.tensors(), scale):
                answer = backbone.predict(points.x, points.t, concepts.rows(points.concept))
                loss = student.descend(mse(answer, wanted), pace(self.decay, index, self.iterations))
            yield Step(
                index=index,
                edit=lambda: backbone.adapter_of(student.values(), scale),
                losses=numbers({"erase": loss}),
                state=lambda index=index: {**student.state("student"), "next": torch.tensor(index + 1)},
            )

    @torch.no_grad()
    def _goal(
        self,
        backbone: Backbone,
        points: Points,
        concepts: Conditioning,
        null: Conditioning,
        neutral: Conditioning | None,
    ) -> Float[Tensor, "b c h w"]:
        """The original's prediction for the neutral text, guided away from the concept."""
        ask = backbone.predict
        e_c = ask(points.x, points.t, concepts.rows(points.concept)) if points.cond is None else points.cond
        e_null = ask(points.x, points.t, null) if points.null is None else points.null
        base = e_null if neutral is None else ask(points.x, points.t, neutral.rows(points.concept))
        return base - self.negative_guidance * (e_c - e_null)

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        points = self.iterations * self.batch
        extra = points if self.neutral else 0
        return self.sampling.cost(points, 2, targets * len(self.templates)) + Cost(forward=extra, trained=points)
