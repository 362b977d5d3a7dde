"""Safe self-distillation: a model learns to answer a concept as it answers no words at all; its average is the edit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.knowledge import Kind
from expunge.core.texts import joined
from expunge.maths.training import Averaged, Decay, Learned, mse, numbers, pace, trainable
from expunge.maths.trajectories import Sampling


@final
@dataclass(frozen=True, kw_only=True)
class SDD(Eraser):
    r"""Teach the model to answer a concept with its own unconditional prediction; what is kept is its moving average.

    .. math:: \min_\theta \big\| \epsilon_\theta(z_t, c_s) - \mathrm{sg}[\epsilon_\theta(z_t, \varnothing)] \big\|^2,\qquad
        \theta^* \leftarrow m\, \theta^* + (1 - m)\, \theta

    2307.05977; methods.md A7. The student's goal is its own prediction. The teacher :math:`\theta^*` gives no goal: it makes
    the points and is the edit. Points follow all targets' names in one text, and each point distils one of them, in turn: the
    roles of the authors' code. Their printed algorithm exchanges the two (``roles="paper"``). Arm ``online-student`` samples
    with the teacher, as they do. Ignores the retain list.
    Deviations: a point of no steps is pure noise at the first timestep (the authors' code draws a whole image there and calls
    it noise); a point's label is its own timestep (theirs is drawn from the 20 around it); the training script's own default
    samples without guidance and without words, where this has guidance 3; ways of choosing concepts other than in turn are
    left out; on SDXL the empty prompt is the model's own zeros.
    """

    paper: ClassVar[Paper] = Paper(
        "Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion Models",
        "Kim et al.",
        2023,
        "2307.05977",
        "https://github.com/nannullna/safe-diffusion",
    )
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {}
    tuning: ClassVar[Sequence[str]] = ("roles", "separator", "ema_decay")
    group: str = "xattn"
    """Parameters that are trained: xattn, xattn-strict, noxattn, selfattn, full."""
    roles: Literal["code", "paper"] = "code"
    """Which text makes points and which is distilled: all names joined and one of them (code), or the other way (paper)."""
    separator: str = ", "
    """What stands between several targets in the joined text."""
    ema_decay: float = 0.999
    """How much of the teacher stays at each update, m; fewer updates than 1 / (1 - m) hardly move it."""
    lr: float = 1e-5
    """Learning rate of AdamW."""
    weight_decay: float = 1e-4
    """AdamW's."""
    clip: float = 1.0
    """How long the gradient may be at most."""
    decay: Decay = "none"
    """Whether the learning rate falls to zero on a straight line."""
    iterations: int = 1500
    """Updates."""
    batch: int = 1
    """Points an update."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_counts("sdd", iterations=self.iterations, batch=self.batch)
        check_positive("sdd", lr=self.lr, clip=self.clip)
        if not 0 <= self.ema_decay < 1 or not self.weight_decay >= 0:
            raise ExpungeError(
                f"sdd's ema_decay {self.ema_decay} and weight_decay {self.weight_decay}: expected 0 or more, and an ema_decay "
                "below 1"
            )

    @override
    def check(self, backbone: Backbone) -> None:
        trainable(backbone, self.group)

    @override
    def stronger(self, times: float) -> "SDD":
        return replace(self, iterations=counted(self.iterations, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        names = [target.name for target in task.targets]
        with torch.no_grad():
            each, whole = backbone.encode(names), backbone.encode([joined(backbone, names, self.separator)])
            null = backbone.unconditional()
        followed, distilled = (whole, each) if self.roles == "code" else (each, whole)
        options = {"weight_decay": self.weight_decay}
        student = Learned(backbone.tensors(trainable(backbone, self.group)), self.lr, "adamw", options)
        teacher = Averaged(student, self.ema_decay)
        source = self.sampling.source(backbone, followed, null, task, "sdd", self.iterations * self.batch)
        first = 0
        if resume is not None:
            student.load("student", resume)
            teacher.load("teacher", resume)
            first = int(resume["next"])
        for index in range(first, self.iterations):
            with self.sampling.sampled_from(backbone.weights(teacher.values())):
                points = source.draw(index, self.batch)
            turns = torch.arange(index * self.batch, (index + 1) * self.batch, device=points.x.device)
            with backbone.weights(student.tensors()):
                with torch.no_grad():
                    goal = backbone.predict(points.x, points.t, null)
                answer = backbone.predict(points.x, points.t, distilled.rows(turns % len(distilled.embeds)))
                speed = pace(self.decay, index, self.iterations)
                loss = student.descend(mse(answer, goal), speed, self.clip)
            teacher.follow()
            yield Step(
                index=index,
                edit=lambda: backbone.edit_of(teacher.values()),
                losses=numbers({"distil": loss}),
                state=lambda index=index: {
                    **student.state("student"),
                    **teacher.state("teacher"),
                    "next": torch.tensor(index + 1),
                },
            )

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        points = self.iterations * self.batch
        rows = 1 if self.roles == "code" else targets
        return self.sampling.cost(points, 0, rows) + Cost(forward=points, trained=points)
