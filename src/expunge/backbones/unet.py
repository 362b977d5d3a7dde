"""What Stable Diffusion 1.x, 2.x and XL share: a UNet whose cross-attention reads text, and a DDIM noise schedule."""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor
from typing_extensions import override

from expunge.backbones import held
from expunge.backbones.asking import Question, Smallest
from expunge.backbones.latent_space import in_full
from expunge.backbones.parts import quiet
from expunge.backbones.pipeline import PipelineBackbone
from expunge.backbones.sampling import begins_late, check_first
from expunge.backbones.texts import TEXT_GROUPS
from expunge.core.attention import Attention
from expunge.core.conditioning import Conditioning, InjectedPrompt
from expunge.core.edit import plain
from expunge.core.errors import ExpungeError, ExpungeWarning, unknown

_GROUPS: dict[str, Callable[[str], bool]] = {
    "xattn": lambda n: ".attn2." in n,
    "xattn-strict": lambda n: n.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")),
    "noxattn": lambda n: not re.search(r"\.attn2\.|^unet\.(conv_norm_out|conv_out|time_embedding|time_proj)\.", n),
    "selfattn": lambda n: ".attn1." in n,
    "attn": lambda n: re.search(r"\.attn[12]\.to_(q|k|v|out)", n) is not None,
    "esd-u": lambda n: ".attn2." not in n and "norm" not in n,
    "full": lambda n: True,
}

_LAYERS: dict[str, Callable[[str], bool]] = {
    "transformer": lambda n: True,
    "selfattn": lambda n: re.search(r"\.attn1\.to_(q|k|v|out\.0)$", n) is not None,
    "attn": lambda n: re.search(r"\.attn[12]\.to_(q|k|v|out\.0)$", n) is not None,
}


_ORDER = ("sample", "timestep", "encoder_hidden_states")
"""What a UNet takes by place."""


def _strange(config: Mapping[str, Any], scheduler: str) -> str:
    """What makes a scheduler's noise schedule another than betas over counted timesteps; empty if nothing does."""
    if "beta_schedule" not in config or "EDM" in scheduler:
        return scheduler
    if config.get("use_flow_sigmas"):
        return "use_flow_sigmas"
    kind = config.get("timestep_type", "discrete")
    return "" if kind == "discrete" else f"timestep_type {kind}"


class UNetBackbone(PipelineBackbone):
    """A UNet with cross-attention."""

    denoiser = "unet"
    capabilities = frozenset({"cross-attention"})
    _attentions: dict[str, Attention] | None = None

    @override
    def parse_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Question:
        named = dict(zip(_ORDER, args, strict=False)) | kwargs
        added = named.get("added_cond_kwargs") or {}
        extra = {name: value for name, value in added.items() if name == "time_ids"}
        cond = Conditioning(embeds=named["encoder_hidden_states"], pooled=added.get("text_embeds"), extra=extra)
        return Question(named["sample"], named["timestep"], cond)

    @override
    def change_call(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        cond: Conditioning,
        x: Float[Tensor, "b c h w"] | None = None,
        t: Real[Tensor, "b"] | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        changed = dict(zip(_ORDER, args[:3], strict=False)) | kwargs
        changed |= {"encoder_hidden_states": cond.embeds}
        changed |= {name: value for name, value in (("sample", x), ("timestep", t)) if value is not None}
        if cond.pooled is not None:
            changed["added_cond_kwargs"] = {**kwargs["added_cond_kwargs"], "text_embeds": cond.pooled}
        first = tuple(changed.pop(name) for name in _ORDER[: len(args)])
        return (*first, *args[3:]), changed

    @override
    def injected(self, prompt: InjectedPrompt | None) -> list[Any]:
        """Hooks that let the layers of ``prompt.blocks`` read its tokens after the text's."""
        if prompt is None:
            return []
        everyone = bool(prompt.rows.all())

        def lengthen(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            given = kwargs["encoder_hidden_states"]
            text, *images = given if isinstance(given, tuple) else (given,)  # an IP-Adapter's images follow
            longer = torch.cat([text, prompt.tokens.to(text)], 1)
            changed = {**kwargs, "encoder_hidden_states": (longer, *images) if images else longer}
            if not everyone:
                own, extra = kwargs.get("attention_mask"), prompt.tokens.shape[1]
                own = text.new_zeros(len(text), text.shape[1]) if own is None else own[:, 0]
                closed = torch.where(prompt.rows, 0.0, torch.finfo(text.dtype).min).to(text)[:, None].expand(-1, extra)
                changed["attention_mask"] = torch.cat([own, closed], 1)[:, None]
            return args, changed

        def revalued(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            values = prompt.values if prompt.values is not None else prompt.tokens
            return (torch.cat([args[0][:, : -values.shape[1]], values.to(args[0])], 1), *args[1:])

        unet = self.component("unet")
        layers: list[Any] = [
            held.owner(unet, f"{n.removeprefix('unet.')}.to_k")
            for n, a in self.attentions().items()
            if a.block in prompt.blocks
        ]
        # in front: hooks that look at attention see what the layer reads
        handles = [layer.register_forward_pre_hook(lengthen, with_kwargs=True, prepend=True) for layer in layers]
        if prompt.values is not None:
            handles += [layer.to_v.register_forward_pre_hook(revalued) for layer in layers]
        return handles

    @override
    def smallest(self) -> Smallest:
        config = self.component("unet").config
        side = 2 ** (len(config.block_out_channels) - 1)
        x = torch.zeros(1, config.in_channels, side, side, dtype=self.dtype, device=self.device)
        pooled, extra = None, {}
        if config.addition_embed_type == "text_time":
            pooled = x.new_zeros(1, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
            extra = {"time_ids": x.new_zeros(1, 6)}
        embeds = x.new_zeros(1, 1, config.cross_attention_dim)
        return Smallest(x, Conditioning(embeds=embeds, pooled=pooled, extra=extra))

    # trajectories -----------------------------------------------------------------------------------------------------
    @override
    def timesteps(self, steps: int) -> list[int]:
        if steps not in self._times:  # read once: each reading waits for the device
            times = self._ddim(steps).timesteps.tolist()
            self._check_first(steps, times[0])
            self._times[steps] = times
        return self._times[steps]

    def _check_first(self, steps: int, first: int) -> None:
        """Refuse a trajectory whose first step has no timestep; warn of one whose pure noise is called by a later one.

        Raises:
            ExpungeError: naming the number of steps.
        """
        most = self.training_timesteps
        check_first(self, steps, first, most)
        if begins_late(steps, first, most):
            warnings.warn(
                f"trajectories of {steps} steps on {self.name} begin at timestep {first} of {most}, where an image should be "
                "there in part: expected fewer steps, such as 50",
                ExpungeWarning,
                stacklevel=4,
            )

    @override
    def step_back(
        self, x: Float[Tensor, "b c h w"], predicted: Float[Tensor, "b c h w"], t: int | float, steps: int
    ) -> Float[Tensor, "b c h w"]:
        return self._ddim(steps).step(predicted, t, x, return_dict=False)[0]

    def _ddim(self, steps: int) -> Any:
        """DDIM over the model's own noise schedule, as SD 1.4 ships it, whatever sampler the model comes with."""
        if steps not in self._samplers:
            from diffusers import DDIMScheduler

            config = self.component("scheduler").config
            if not 1 <= steps <= config.num_train_timesteps:
                raise ExpungeError(f"{steps} denoising steps: expected 1 to {config.num_train_timesteps}")
            strange = _strange(config, type(self.component("scheduler")).__name__)
            if strange:
                raise ExpungeError(
                    f"{self.name} is on another noise schedule than Stable Diffusion's ({strange}): expected betas, and "
                    "timesteps that count them (images can be made, and closed forms attached)"
                )
            ours = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
            with quiet():
                sampler: Any = DDIMScheduler.from_config(config, **ours)
            sampler.set_timesteps(steps, device=self.device)
            self._samplers[steps] = sampler
        return self._samplers[steps]

    @override
    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Real[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        x = self._ddim(1).add_noise(in_full(latents), in_full(noise), t)
        return x.to(latents.dtype)

    @override
    def truth(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Real[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        kind = self.component("scheduler").config.prediction_type
        if kind == "v_prediction":
            return self._ddim(1).get_velocity(in_full(latents), in_full(noise), t).to(latents.dtype)
        if kind != "epsilon":
            raise ExpungeError(f"{self.name} predicts '{kind}': expected epsilon or v_prediction")
        return noise

    # anatomy ----------------------------------------------------------------------------------------------------------
    @override
    def group(self, name: str) -> list[str]:
        if name in TEXT_GROUPS:
            return self.texts.group(name)
        if name not in _GROUPS:
            raise unknown("parameter group", name, [*_GROUPS, *TEXT_GROUPS])
        return [n for n in (f"unet.{p}" for p in self._parts.names("unet")) if _GROUPS[name](n)]

    @override
    def layers(self, name: str) -> list[str]:
        if name not in _LAYERS:
            raise unknown("layer group", name, _LAYERS)
        unet = self.component("unet")
        blocks = tuple(plain(f"{n}.") for n, m in unet.named_modules() if type(m).__name__ == "Transformer2DModel")
        inside = [n for n in held.own_layers(unet) if n.startswith(blocks)]
        return [f"unet.{n}" for n in inside if _LAYERS[name](n)]

    @override
    def text_inputs(self) -> list[str]:
        return self.group("xattn-strict")

    @override
    def attentions(self) -> dict[str, Attention]:
        if (
            self._attentions is None
        ):  # a walk over all modules, which an injected prompt would repeat at every evaluation
            layers: dict[str, Attention] = {}
            for given, module in self.component("unet").named_modules():
                name = plain(f"{given}.")[:-1]
                if name.endswith(".attn2"):
                    q, k, v, out = (f"unet.{name}.{p}.weight" for p in ("to_q", "to_k", "to_v", "to_out.0"))
                    layers[f"unet.{name}"] = Attention(module.heads, q, k, v, out, name.split("_")[0])
            self._attentions = layers
        return self._attentions
