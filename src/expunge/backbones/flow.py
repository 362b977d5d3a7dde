"""Models of a flow: transformers that give the velocity from an image to noise, sampled by Euler's steps."""

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float, Real
from torch import Tensor
from typing_extensions import override

from expunge.backbones.asking import Question
from expunge.backbones.latent_space import in_full
from expunge.backbones.parts import quiet
from expunge.backbones.pipeline import PipelineBackbone
from expunge.core.attention import Attention
from expunge.core.conditioning import Conditioning
from expunge.core.errors import ExpungeError


class FlowBackbone(PipelineBackbone):
    """A model that predicts the velocity of a flow, without cross-attention: text and image attend to each other."""

    order: ClassVar[Sequence[str]] = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    """What the transformer takes by place."""

    @property
    def timestep_unit(self) -> int:
        """Timesteps of ours that one of the transformer's is."""
        return 1

    # denoising --------------------------------------------------------------------------------------------------------
    @override
    def parse_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Question:
        named = dict(zip(self.order, args, strict=False)) | kwargs
        cond = Conditioning(embeds=named["encoder_hidden_states"], pooled=named["pooled_projections"])
        return Question(named["hidden_states"], named["timestep"] * self.timestep_unit, cond)

    @override
    def change_call(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        cond: Conditioning,
        x: Float[Tensor, "b ..."] | None = None,
        t: Real[Tensor, "b"] | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        changed = dict(zip(self.order, args, strict=False)) | kwargs
        changed |= {"encoder_hidden_states": cond.embeds, "pooled_projections": cond.pooled}
        if x is not None:
            changed["hidden_states"] = x
        if t is not None:
            changed["timestep"] = t / self.timestep_unit
        first = tuple(changed.pop(name) for name in self.order[: len(args)])
        return (*first, *args[len(self.order) :]), changed

    @override
    def skipped(self, steps: int, strength: float) -> int:
        return int(max(steps - min(steps * strength, steps), 0))

    # trajectories -----------------------------------------------------------------------------------------------------
    @override
    def timesteps(self, steps: int) -> list[float]:
        if steps not in self._times:  # read once: each reading waits for the device
            self._times[steps] = self._euler(steps).timesteps.tolist()
        return self._times[steps]

    @override
    def step_back(
        self, x: Float[Tensor, "b c h w"], predicted: Float[Tensor, "b c h w"], t: int | float, steps: int
    ) -> Float[Tensor, "b c h w"]:
        """Euler's step along the flow: x moves by the velocity times the difference of the noise levels."""
        times = self.timesteps(steps)
        here = min(range(steps), key=lambda i: abs(times[i] - t))
        levels = self._euler(steps).sigmas
        return x + (levels[here + 1] - levels[here]).to(x) * predicted

    def _euler(self, steps: int) -> Any:
        if steps not in self._samplers:
            from diffusers import FlowMatchEulerDiscreteScheduler

            config = self.component("scheduler").config
            if not 1 <= steps <= config.num_train_timesteps:
                raise ExpungeError(f"{steps} denoising steps: expected 1 to {config.num_train_timesteps}")
            with quiet():
                sampler: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
            self.space(sampler, steps)
            self._samplers[steps] = sampler
        return self._samplers[steps]

    @override
    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Real[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        """Latents at noise level t / 1000: a straight line from the image to the noise."""
        level = (t.to(in_full(latents)) / self.training_timesteps)[:, None, None, None]
        return ((1 - level) * latents + level * noise).to(latents.dtype)

    @override
    def truth(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Real[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        return noise - latents

    @override
    def attentions(self) -> dict[str, Attention]:
        return {}
