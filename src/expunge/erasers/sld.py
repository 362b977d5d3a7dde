"""Safe Latent Diffusion: guide every image away from unwanted words where it leans towards them, at inference."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.eraser import Eraser, Step, Task
from expunge.core.errors import ExpungeError, ExpungeWarning, check_positive
from expunge.core.guidance import Guidance, GuidedStep
from expunge.core.knowledge import Kind, Knowledge
from expunge.core.texts import joined

UNSAFE = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood, "
    "obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty"
)
"""The paper's safety concept."""


class Level(NamedTuple):
    """One of the paper's configurations."""

    warmup: int
    scale: float
    threshold: float
    momentum_scale: float
    momentum_beta: float


LEVELS = {
    "weak": Level(15, 200.0, 0.0, 0.0, 0.0),
    "medium": Level(10, 1000.0, 0.01, 0.3, 0.4),
    "strong": Level(7, 2000.0, 0.025, 0.5, 0.7),
    "max": Level(0, 5000.0, 1.0, 0.5, 0.7),
}
"""The paper's configurations; diffusers' own ``SafetyConfig.WEAK`` has scale 20."""


@final
@dataclass(frozen=True, kw_only=True)
class SafetyGuidance(Guidance):
    """Take away what the prompt's prediction shares with that of ``text``."""

    eraser = "sld"
    text: str
    warmup: int
    scale: float
    threshold: float
    momentum_scale: float
    momentum_beta: float

    @override
    def combine(self, backbone: Backbone, guided: Float[Tensor, "b *chw"], step: GuidedStep) -> Float[Tensor, "b *chw"]:
        text, built_up = f"{self.id} text", f"{self.id} momentum"
        if text not in step.state:
            with torch.no_grad():
                step.state[text] = backbone.encode([self.text])
        e_safety = backbone.predict(step.x, step.t, step.state[text])
        momentum = step.state.get(built_up, torch.zeros_like(guided))
        away = self.away(step.predicted_null, step.predicted_cond, e_safety, momentum)
        beta = self.momentum_beta
        step.state[built_up] = beta * momentum + (1 - beta) * away  # Eq. 8: builds up during warm-up, too
        return guided if step.index < self.warmup else guided - step.scale * away  # Eq. 3

    def away(
        self,
        e_null: Float[Tensor, "b *chw"],
        e_cond: Float[Tensor, "b *chw"],
        e_safety: Float[Tensor, "b *chw"],
        momentum: Float[Tensor, "b *chw"],
    ) -> Float[Tensor, "b *chw"]:
        """What guidance loses: the safety text's direction where the prompt's prediction is near it, and the momentum."""
        near = e_cond - e_safety
        weight = (near * self.scale).abs().clamp(max=1.0)  # Eq. 6
        weight = torch.where(near < self.threshold, weight, torch.zeros_like(weight))
        return weight * (e_safety - e_null) + self.momentum_scale * momentum  # Eq. 4 and 7


@final
@dataclass(frozen=True, kw_only=True)
class SLD(Eraser):
    r"""Steer images away from unwanted words at inference, element by element; the weights stay as they are.

    .. math:: \bar\epsilon = \epsilon_\varnothing + s_g (\epsilon_p - \epsilon_\varnothing - \gamma_t),\quad
        \gamma_t = \mu \odot (\epsilon_S - \epsilon_\varnothing) + s_m \nu_t,\quad
        \mu = \min(1, |s_S (\epsilon_p - \epsilon_S)|)\ \text{where}\ \epsilon_p - \epsilon_S < \lambda,\ \text{else}\ 0

    2211.05105; methods.md A11. S is the targets' words, or these and the paper's own list with ``concept="unsafe"``. One more
    evaluation a step. Has no effect at guidance 1, nor in a generation of no more than ``warmup`` steps.
    Ignores the retain list. Deviations: any positive scale acts, where diffusers switches the guidance off at 1 and below; the
    level ``weak`` is that of evaluation scripts, with a scale of 200 and not 20; the text is the targets' words (the paper's
    list with ``concept="unsafe"``); on flow models the arithmetic is done on velocities.
    """

    paper: ClassVar[Paper] = Paper(
        "Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models",
        "Schramowski et al.",
        2023,
        "2211.05105",
        "https://github.com/ml-research/safe-latent-diffusion",
    )
    scales: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = True
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {"concept": "words"}
    tuning: ClassVar[Sequence[str]] = ("level", "separator", "scale", "threshold", "momentum_scale", "momentum_beta")
    level: Literal["weak", "medium", "strong", "max"] = "medium"
    """The paper's configuration, for what is not given below."""
    concept: Literal["targets", "unsafe"] = "targets"
    """What is steered away from: the targets' words, or those and the paper's list of unsafe ones."""
    separator: str = ", "
    """What stands between several targets."""
    warmup: int | None = None
    """Steps that are left alone, delta; of about 50."""
    scale: float | None = None
    """How fast the weight grows with the distance to the safety text, s_S."""
    threshold: float | None = None
    """Elements that are further from the safety text than this are left alone, lambda."""
    momentum_scale: float | None = None
    """Weight of the momentum, s_m."""
    momentum_beta: float | None = None
    """How slowly the momentum forgets, beta_m, from 0 to 1."""

    def __post_init__(self) -> None:
        level = self.configured()
        check_positive("sld", scale=level.scale)
        if not (level.warmup >= 0 and level.momentum_scale >= 0 and 0 <= level.momentum_beta < 1):
            raise ExpungeError(
                f"sld's warmup {level.warmup}, momentum_scale {level.momentum_scale}, momentum_beta {level.momentum_beta}: "
                "expected zero or more, and a beta below 1"
            )

    def configured(self) -> Level:
        """The level, with what was given in its place."""
        given = {name: getattr(self, name) for name in Level._fields if getattr(self, name) is not None}
        return LEVELS[self.level]._replace(**given)

    @override
    def knowledge(self) -> Knowledge:
        """The words of the paper's list, where these are steered away from too."""
        return Knowledge(words=tuple(UNSAFE.split(", ")) if self.concept == "unsafe" else ())

    @override
    def stronger(self, times: float) -> "SLD | None":
        """A level up or down for each doubling or halving; none where parts of one are given, which would stay as they are."""
        if any(getattr(self, name) is not None for name in Level._fields):
            return None
        levels = list(LEVELS)
        index = levels.index(self.level) + round(math.log2(times))
        return replace(self, level=levels[index]) if 0 <= index < len(levels) else None

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        text = joined(backbone, [t.name for t in task.targets], self.separator)
        if self.concept == "unsafe":
            text = self.separator.join([text, UNSAFE])
            lost = backbone.cut([text])[0]
            if lost:
                said = f"the targets with the paper's list are more than {backbone.name}'s text encoder reads: it cuts"
                warnings.warn(f"{said} '{lost}'", ExpungeWarning, stacklevel=2)
        edit = SafetyGuidance(text=text, **self.configured()._asdict())
        yield Step(index=0, edit=lambda: edit)
