"""Stable Diffusion 1.x and 2.x, and the testbed, which has their layout."""

from collections.abc import Sequence
from typing import Any, final

from jaxtyping import Float, Int, Real
from torch import Tensor
from typing_extensions import override

from expunge.backbones.unet import UNetBackbone
from expunge.core.backbone import Conditioning
from expunge.core.errors import ExpungeError


@final
class StableDiffusion(UNetBackbone):
    """Stable Diffusion 1.x/2.x: CLIP text encoder, UNet with cross-attention, epsilon or v-prediction."""

    family = "sd"
    pipeline = "StableDiffusionPipeline"
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    towers = ("text_encoder",)

    @override
    @classmethod
    def _check_pipeline(cls, pipe: Any) -> None:
        if not all(hasattr(pipe, part) for part in cls.parts) or hasattr(pipe, "text_encoder_2"):
            raise ExpungeError(
                f"a {type(pipe).__name__} cannot be edited: expected a StableDiffusionPipeline or an expunge backbone"
            )
        reads, writes = pipe.unet.config.cross_attention_dim, pipe.text_encoder.config.hidden_size
        if reads != writes or "InstructPix2Pix" in type(pipe).__name__:
            raise ExpungeError(
                f"a {type(pipe).__name__} (UNet reads {reads} numbers a token, text encoder writes {writes}) cannot be "
                "edited: expected Stable Diffusion 1.x or 2.x"
            )

    # text -------------------------------------------------------------------------------------------------------------
    @override
    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "b n"]:
        tokenizer = self._parts.get("tokenizer")
        length = min(tokenizer.model_max_length, self._parts.get("text_encoder").config.max_position_embeddings)
        encoded = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return encoded.input_ids.to(self.device)

    @override
    def end(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
        return (ids == self._parts.get("tokenizer").eos_token_id).int().argmax(-1)

    @override
    def embed(self, ids: Tensor) -> Float[Tensor, "b n d"]:
        table = self._parts.get("text_encoder").get_input_embeddings()
        return ids.to(table.weight.dtype) @ table.weight if ids.is_floating_point() else table(ids)

    @override
    def encode(
        self, prompts: Sequence[str] | Int[Tensor, "b n"], embeddings: Float[Tensor, "b n d"] | None = None
    ) -> Conditioning:
        ids = prompts if isinstance(prompts, Tensor) else self.tokenize(prompts)
        tower = self._parts.get("text_encoder")
        handle = None
        if embeddings is not None:
            given = embeddings
            handle = tower.get_input_embeddings().register_forward_hook(lambda *_: given)
        try:
            hidden = tower(input_ids=ids).last_hidden_state
        finally:
            if handle is not None:
                handle.remove()
        return Conditioning(embeds=hidden, tokens=ids if embeddings is None else None)

    @override
    def _ask(self, x: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], cond: Conditioning) -> Float[Tensor, "b c h w"]:
        return self._parts.get("unet")(x, t, encoder_hidden_states=cond.embeds, return_dict=False)[0]
