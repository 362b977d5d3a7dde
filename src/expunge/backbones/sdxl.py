"""Stable Diffusion XL: two text encoders, a pooled embedding, and the numbers that say how large an image is."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from typing_extensions import override

from expunge.backbones.texts import LAST_LAYER, known_ids
from expunge.backbones.unet import UNetBackbone
from expunge.core.conditioning import Conditioning
from expunge.core.errors import ExpungeError


@final
class StableDiffusionXL(UNetBackbone):
    """Stable Diffusion XL's base model: text vectors of both encoders side by side, and the second one's pooled vector."""

    family = "sdxl"
    pipeline = "StableDiffusionXLPipeline"
    parts = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    towers = ("text_encoder", "text_encoder_2")
    clip_towers = towers
    text_state = -2
    capabilities = frozenset({"cross-attention", "pooled"})
    redefined: ClassVar[Mapping[str, int]] = {"esd-u": 1, "kpop": 1, "leco": 1, "spm": 1, **LAST_LAYER}

    @override
    @classmethod
    def _check_pipeline(cls, pipe: Any) -> None:
        if not all(getattr(pipe, part, None) is not None for part in cls.parts):
            raise ExpungeError(
                f"a {type(pipe).__name__} cannot be edited: expected a StableDiffusionXLPipeline with both text encoders"
            )

    @override
    def pipeline_options(self) -> dict[str, Any]:
        zeros = bool(self._parts.option("force_zeros_for_empty_prompt", True))
        return {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}

    @override
    def encode(
        self,
        prompts: Sequence[str] | Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None = None,
        at: Bool[Tensor, "b n"] | None = None,
    ) -> Conditioning:
        ids, first, second = self.texts.read_twice(prompts, embeddings, at)
        layer = self.text_state - (self.texts.clip_skip or 0)
        height, width = self.image_size
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=ids.device)
        return Conditioning(
            embeds=torch.cat([first.hidden_states[layer], second.hidden_states[layer]], -1),
            pooled=second.text_embeds,
            tokens=known_ids(ids, embeddings, at),
            extra={"time_ids": sizes.to(self.dtype).expand(len(ids), -1)},
        )

    @override
    def group(self, name: str) -> list[str]:
        """As of any UNet; but ``esd-u`` leaves embeddings and all outside the blocks alone, as in ESD's script for XL."""
        found = super().group(name)
        return [n for n in found if "block" in n and "emb" not in n] if name == "esd-u" else found

    @override
    def unconditional(self) -> Conditioning:
        """Zeros, unless the model's own configuration says that its empty prompt is read as other prompts are."""
        empty = self.encode([""])
        if not self.pipeline_options()["force_zeros_for_empty_prompt"]:
            return empty
        return Conditioning(
            embeds=torch.zeros_like(empty.embeds),
            pooled=None if empty.pooled is None else torch.zeros_like(empty.pooled),
            tokens=empty.tokens,
            extra=empty.extra,
        )

    @override
    def run_denoiser(
        self, x: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        added = {"text_embeds": cond.pooled, "time_ids": cond.extra["time_ids"]}
        unet = self.component("unet")
        return unet(x, t, encoder_hidden_states=cond.embeds, added_cond_kwargs=added, return_dict=False)[0]

    # latents ----------------------------------------------------------------------------------------------------------
    @override
    def normed(self, latents: Float[Tensor, "b c h w"], vae: Any) -> Float[Tensor, "b c h w"]:
        statistics = _statistics(vae, latents)
        if statistics is None:
            return super().normed(latents, vae)
        return (latents - statistics.mean) * vae.config.scaling_factor / statistics.std

    @override
    def unnormed(self, latents: Float[Tensor, "b c h w"], vae: Any) -> Float[Tensor, "b c h w"]:
        statistics = _statistics(vae, latents)
        if statistics is None:
            return super().unnormed(latents, vae)
        return latents * statistics.std / vae.config.scaling_factor + statistics.mean


class _Statistics(NamedTuple):
    """What some autoencoders' latents are normed with, by channel."""

    mean: Float[Tensor, "1 c 1 1"]
    std: Float[Tensor, "1 c 1 1"]


def _statistics(vae: Any, like: Tensor) -> _Statistics | None:
    """The statistics in an autoencoder's configuration, if it has both (Playground 2.5's has)."""
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return None
    return _Statistics(*(torch.tensor(numbers).view(1, -1, 1, 1).to(like) for numbers in (mean, std)))
