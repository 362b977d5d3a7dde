"""Erased Stable Diffusion: fine-tune the denoiser to answer a concept as if guided away from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept, phrases, same_words
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import LATER, Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.knowledge import Kind
from expunge.maths.retaining import Retaining, retained
from expunge.maths.training import Decay, Learned, mse, numbers, pace, trainable
from expunge.maths.trajectories import Points, Sampling


@final
@dataclass(frozen=True, kw_only=True)
class ESD(Eraser):
    r"""Teach the model to answer a concept with the original's prediction, guided away from the concept.

    .. math:: \min_{\theta'} \big\| \epsilon_{\theta'}(x_t, c) - \big[\epsilon_\theta(x_t, \varnothing)
        - \eta (\epsilon_\theta(x_t, c) - \epsilon_\theta(x_t, \varnothing))\big] \big\|^2

    2303.07345; methods.md A3. ESD-x is ``group="xattn"``, ESD-u ``"noxattn"``, ESD-x-strict ``"xattn-strict"``;
    the defaults are the authors' first release. Their diffusers port is ``goal="port", negative_guidance=2, lr=5e-5,
    iterations=200, arm="online-frozen"`` (its own esd-u is ``group="esd-u"``). With several targets each point draws one.
    The paper keeps no words. Told some, it adds KPOP's term for them, with one of the words drawn for each of the points:

    .. math:: \lambda_r \big\| \epsilon_{\theta'}(x_t, c_r) - \epsilon_\theta(x_t, c_r) \big\|^2

    Deviations: words that are kept; without them there is no such term. A point's label is its own timestep, one of the
    trajectory's (the first release draws it between 39 and 58 steps noisier, so that it trains all 1,000: methods.md 0.2). On
    SDXL one rule picks the tensors, as elsewhere (the authors' script leaves out time embeddings and the last convolution), and
    the empty prompt is the model's own zeros.
    """

    paper: ClassVar[Paper] = Paper(
        "Erasing Concepts from Diffusion Models",
        "Gandikota et al.",
        2023,
        "2303.07345",
        "https://github.com/rohitgandikota/erasing",
    )
    version: ClassVar[int] = 2  # 2: keeps the words that it is told to keep
    knows: ClassVar[Mapping[str, Kind]] = {"templates": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("negative_guidance", "goal", "erase_from", "retain_weight")
    group: str = "xattn"
    """Parameters that are trained: xattn, xattn-strict, noxattn, selfattn, esd-u, full."""
    negative_guidance: float = 1.0
    """How far beyond the target's base it is guided away, eta."""
    goal: Literal["original", "port"] = "original"
    """What is guided away from the concept: the empty prompt's prediction, or (as the port does) that of ``erase_from``."""
    erase_from: str | None = None
    """With the port's goal: the concept that loses the target as an attribute; the target itself if not given."""
    templates: tuple[str, ...] = ("{}",)
    """Phrases that targets and retained words are put into; each point draws one."""
    retain_weight: float = field(default=1.0, metadata=LATER)
    """Weight of the term that keeps retained words, lambda_r; without such words there is none, as in the paper."""
    lr: float = 1e-5
    """Learning rate of Adam."""
    decay: Decay = "none"
    """Whether the learning rate falls to zero on a straight line."""
    iterations: int = 1000
    """Updates."""
    batch: int = 1
    """Points an update."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_counts("esd", iterations=self.iterations, batch=self.batch)
        check_positive("esd", lr=self.lr, retain_weight=self.retain_weight)
        phrases(self.templates, "")
        if self.erase_from is not None and self.goal == "original":
            raise ExpungeError(f"esd's erase_from '{self.erase_from}' with goal original: expected goal port")

    @override
    def check_targets(self, targets: Sequence[Concept]) -> None:
        same = next((t.name for t in targets if self.erase_from and same_words(self.erase_from, t.name)), None)
        if same is not None:
            raise ExpungeError(
                f"'{same}' should be erased from '{self.erase_from}', which is itself: expected another concept"
            )

    @override
    def check(self, backbone: Backbone) -> None:
        trainable(backbone, self.group)

    @override
    def stronger(self, times: float) -> "ESD":
        return replace(self, iterations=counted(self.iterations, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        with torch.no_grad():
            texts = [p for t in task.targets for p in phrases(self.templates, t.name)]
            concepts = backbone.encode(texts)
            changed = concepts if self.erase_from is None else backbone.encode([self.erase_from] * len(texts))
            null = backbone.unconditional()
            words = [p for word in task.retain for p in phrases(self.templates, word)]
            keeping = Retaining(backbone, task, backbone.encode(words) if words else None)
        student = Learned(backbone.tensors(trainable(backbone, self.group)), self.lr)
        source = self.sampling.source(backbone, changed, null, task, "esd", self.iterations * self.batch)
        first = 0
        if resume is not None:
            student.load("student", resume)
            first = int(resume["next"])
        for index in range(first, self.iterations):
            with self.sampling.sampled_from(backbone.weights(student.values())):
                points = source.draw(index, self.batch)
            wanted, kept = self._goal(backbone, points, concepts, null), keeping.at(index, points)
            with backbone.weights(student.tensors()):
                answer = backbone.predict(points.x, points.t, changed.rows(points.concept))
                terms = {"erase": mse(answer, wanted)}
                loss = terms["erase"]
                if kept is not None:
                    terms["retain"] = retained(backbone, kept)
                    loss = loss + self.retain_weight * terms["retain"]
                student.descend(loss, pace(self.decay, index, self.iterations))
            yield Step(
                index=index,
                edit=lambda: backbone.edit_of(student.values()),
                losses=numbers(terms),
                state=lambda index=index: {**student.state("student"), "next": torch.tensor(index + 1)},
            )

    @torch.no_grad()
    def _goal(
        self, backbone: Backbone, points: Points, concepts: Conditioning, null: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """The frozen model's prediction, guided away from the concept."""
        whole = self.erase_from is None
        e_c = points.cond if whole else None  # a trajectory that followed erase_from has no prediction of the concept
        e_null = points.null
        if e_c is None:
            e_c = backbone.predict(points.x, points.t, concepts.rows(points.concept))
        if e_null is None:
            e_null = backbone.predict(points.x, points.t, null)
        if self.goal == "original":
            return e_null - self.negative_guidance * (e_c - e_null)
        base = e_c
        if self.erase_from is not None:
            base = points.cond
            if base is None:
                base = backbone.predict(points.x, points.t, backbone.encode([self.erase_from]))
        return base - self.negative_guidance * (e_c - e_null)

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        points = self.iterations * self.batch
        extra = 0 if self.erase_from is None else points
        total = self.sampling.cost(points, 2, targets * len(self.templates)) + Cost(forward=extra, trained=points)
        return total + Cost(forward=points, trained=points) if retain else total
