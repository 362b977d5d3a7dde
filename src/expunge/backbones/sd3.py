"""Stable Diffusion 3: a transformer in which text and image attend to each other, trained to give the velocity of a flow."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from typing_extensions import override

from expunge.backbones import held
from expunge.backbones.asking import Smallest
from expunge.backbones.flow import FlowBackbone
from expunge.backbones.texts import LAST_LAYER, TEXT_GROUPS, known_ids
from expunge.core.conditioning import Conditioning
from expunge.core.errors import ExpungeError, unknown

T5_LENGTH = 256
"""Tokens that the third text encoder reads."""
_TEXT_STREAM = re.compile(r"\.attn\.(add_[qkv]_proj|to_add_out|norm_added_[qk])\.")
_GROUPS: dict[str, Callable[[str], bool]] = {
    "xattn": lambda n: _TEXT_STREAM.search(n) is not None,
    "xattn-strict": lambda n: n.endswith((".attn.add_k_proj.weight", ".attn.add_v_proj.weight")),
    "noxattn": lambda n: (
        not (_TEXT_STREAM.search(n) or re.search(r"^transformer\.(norm_out|proj_out|time_text_embed)\.", n))
    ),
    "attn": lambda n: re.search(r"\.attn2?\.to_(q|k|v|out)\.", n) is not None,
    "full": lambda n: True,
}

_LAYERS: dict[str, Callable[[str], bool]] = {
    "transformer": lambda n: True,
    "attn": lambda n: re.search(r"\.attn2?\.to_(q|k|v|out\.0)$", n) is not None,
}


@final
class StableDiffusion3(FlowBackbone):
    """Stable Diffusion 3 and 3.5: two CLIP text encoders, T5 where the model has it, and an MMDiT.

    It has no cross-attention: ``xattn`` is here the text stream's part of the joint attention, ``xattn-strict`` its keys and
    values, ``attn`` the image stream's part.
    """

    family = "sd3"
    pipeline = "StableDiffusion3Pipeline"
    parts = (
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
        "scheduler",
    )
    optional = ("text_encoder_3", "tokenizer_3")
    denoiser = "transformer"
    towers = ("text_encoder", "text_encoder_2", "text_encoder_3")
    clip_towers = ("text_encoder", "text_encoder_2")
    text_state = -2
    redefined: ClassVar[Mapping[str, int]] = LAST_LAYER
    capabilities = frozenset({"pooled", "flow"})

    @override
    @classmethod
    def _check_pipeline(cls, pipe: Any) -> None:
        wanted = [part for part in cls.parts if part not in cls.optional]
        if not all(getattr(pipe, part, None) is not None for part in wanted):
            raise ExpungeError(f"a {type(pipe).__name__} cannot be edited: expected a StableDiffusion3Pipeline")

    @override
    def supports(self, capability: str) -> bool:
        """As the family does; ``t5`` where the model has its third text encoder."""
        return super().supports(capability) or (capability == "t5" and self._parts.has("text_encoder_3"))

    # text -------------------------------------------------------------------------------------------------------------
    @override
    def encode(
        self,
        prompts: Sequence[str] | Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None = None,
        at: Bool[Tensor, "b n"] | None = None,
    ) -> Conditioning:
        """Encode prompts or CLIP's ids; ``embeddings`` take the place of CLIP's token embeddings, while T5 reads the words."""
        ids, first, second = self.texts.read_twice(prompts, embeddings, at)
        layer = self.text_state - (self.texts.clip_skip or 0)
        clip = torch.cat([first.hidden_states[layer], second.hidden_states[layer]], -1)
        t5 = self._t5(prompts)
        clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Conditioning(
            embeds=torch.cat([clip, t5.to(clip)], 1),
            pooled=torch.cat([first.text_embeds, second.text_embeds], -1),
            tokens=known_ids(ids, embeddings, at),
        )

    def _t5(self, prompts: Sequence[str] | Int[Tensor, "b n"]) -> Float[Tensor, "b m d"]:
        tower, tokenizer = self.component("text_encoder_3"), self.component("tokenizer_3")
        if tower is None:
            width = self.component("transformer").config.joint_attention_dim
            return torch.zeros((len(prompts), T5_LENGTH, width), device=self.device)
        words = prompts
        if isinstance(prompts, Tensor):
            words = self.component("tokenizer").batch_decode(prompts, skip_special_tokens=True)
        read = tokenizer(
            list(words),
            padding="max_length",
            max_length=T5_LENGTH,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return tower(read.input_ids.to(self.device))[0]

    # denoising --------------------------------------------------------------------------------------------------------
    @override
    def smallest(self) -> Smallest:
        config = self.component("transformer").config
        side = 2 * config.patch_size
        x = torch.zeros(1, config.in_channels, side, side, dtype=self.dtype, device=self.device)
        embeds, pooled = x.new_zeros(1, 1, config.joint_attention_dim), x.new_zeros(1, config.pooled_projection_dim)
        return Smallest(x, Conditioning(embeds=embeds, pooled=pooled))

    @override
    def run_denoiser(
        self, x: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        return self.component("transformer")(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=cond.embeds,
            pooled_projections=cond.pooled,
            return_dict=False,
        )[0]

    # anatomy ----------------------------------------------------------------------------------------------------------
    @override
    def group(self, name: str) -> list[str]:
        if name in TEXT_GROUPS:
            return self.texts.group(name)
        if name not in _GROUPS:
            raise unknown("parameter group", name, [*_GROUPS, *TEXT_GROUPS])
        learned = (
            f"transformer.{p}" for p in self._parts.names("transformer") if p != "pos_embed.pos_embed"
        )  # a buffer
        return [n for n in learned if _GROUPS[name](n)]

    @override
    def layers(self, name: str) -> list[str]:
        if name not in _LAYERS:
            raise unknown("layer group", name, _LAYERS)
        layers = held.own_layers(self.component("transformer"))
        blocks = [n for n in layers if n.startswith("transformer_blocks.")]
        return [f"transformer.{n}" for n in blocks if _LAYERS[name](n)]

    @override
    def text_inputs(self) -> list[str]:
        return ["transformer.context_embedder.weight"]
