"""Stable Diffusion 1.x and 2.x, and the testbed, which has their layout."""

from collections.abc import Sequence
from typing import Any, final

from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from typing_extensions import override

from expunge.backbones import held
from expunge.backbones.folder import Folder
from expunge.backbones.parts import Parts
from expunge.backbones.texts import known_ids
from expunge.backbones.unet import UNetBackbone
from expunge.core.conditioning import Conditioning
from expunge.core.errors import ExpungeError


@final
class StableDiffusion(UNetBackbone):
    """Stable Diffusion 1.x/2.x: CLIP text encoder, UNet with cross-attention, epsilon or v-prediction."""

    family = "sd"
    pipeline = "StableDiffusionPipeline"
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    towers = ("text_encoder",)
    clip_towers = towers

    def __init__(self, parts: Parts, name: str) -> None:
        super().__init__(parts, name)
        if isinstance(parts, Folder):
            _check_unet(parts)

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

    @override
    def pipeline_options(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    # text -------------------------------------------------------------------------------------------------------------
    @override
    def encode(
        self,
        prompts: Sequence[str] | Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None = None,
        at: Bool[Tensor, "b n"] | None = None,
    ) -> Conditioning:
        ids = prompts if isinstance(prompts, Tensor) else self.tokenize(prompts)
        read = self.texts.read("text_encoder", ids, embeddings, at)
        hidden = read.last_hidden_state
        if self.texts.clip_skip is not None:  # the last layer's norm follows all the same
            norm = held.owner(self.component("text_encoder"), "final_layer_norm.weight")
            hidden = norm(read.hidden_states[-(self.texts.clip_skip + 1)])
        return Conditioning(embeds=hidden, tokens=known_ids(ids, embeddings, at))

    @override
    def run_denoiser(
        self, x: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        return self.component("unet")(x, t, encoder_hidden_states=cond.embeds, return_dict=False)[0]


def _check_unet(folder: Folder) -> None:
    """Refuse a UNet of another family, or one that reads texts of another width than the text encoder's.

    Raises:
        ExpungeError: naming it.
    """
    unet = folder.config("unet")
    if unet.get("addition_embed_type"):
        raise ExpungeError(f"'{folder.path}' holds the UNet of Stable Diffusion XL: expected that of SD 1.x or 2.x")
    reads, writes = unet.get("cross_attention_dim"), folder.config("text_encoder").get("hidden_size")
    if isinstance(reads, int) and isinstance(writes, int) and reads != writes and not unet.get("encoder_hid_dim"):
        raise ExpungeError(
            f"'{folder.path / 'unet'}' reads {reads} numbers a token, and the text encoder beside it writes {writes}: "
            "expected parts of one model"
        )
