"""FLUX.1: a transformer of double and single blocks that is told the scale of guidance, on latents packed two by two."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from typing_extensions import override

from expunge.backbones import held, t5_and_clip
from expunge.backbones.asking import Smallest
from expunge.backbones.bfl import TransformerFile
from expunge.backbones.flow import FlowBackbone
from expunge.backbones.folder import Folder
from expunge.backbones.parts import device_and_dtype
from expunge.backbones.texts import TEXT_GROUPS, known_ids
from expunge.core.conditioning import Conditioning
from expunge.core.errors import ExpungeError, unknown
from expunge.core.texts import Spread

LENGTHS = {True: 512, False: 256}
"""Tokens that T5 reads: of a model that is told the scale of guidance (dev), and of one that is not (schnell)."""
_TEXT_STREAM = re.compile(r"\.attn\.(add_[qkv]_proj|to_add_out|norm_added_[qk])\.")
_GROUPS: dict[str, Callable[[str], bool]] = {
    "xattn": lambda n: _TEXT_STREAM.search(n) is not None,
    "xattn-strict": lambda n: n.endswith((".attn.add_k_proj.weight", ".attn.add_v_proj.weight")),
    "noxattn": lambda n: (
        not (_TEXT_STREAM.search(n) or re.search(r"^transformer\.(norm_out|proj_out|time_text_embed)\.", n))
    ),
    "attn": lambda n: re.search(r"\.attn\.to_(q|k|v|out)\.", n) is not None,
    "esd-x": lambda n: ".attn." in n and ".attn.norm_" not in n,
    "esd-x-strict": lambda n: re.search(r"\.attn\.to_[kv]\.", n) is not None,
    "double": lambda n: n.startswith("transformer.transformer_blocks."),
    "single": lambda n: n.startswith("transformer.single_transformer_blocks."),
    "full": lambda n: True,
}
"""Parameters by their names. Single blocks have no projections of the text's own: one matrix reads text and image."""
_LAYERS: dict[str, Callable[[str], bool]] = {
    "transformer": lambda n: True,
    "attn": lambda n: re.search(r"\.attn\.to_(q|k|v|out\.0)$", n) is not None,
    "double": lambda n: n.startswith("transformer_blocks."),
    "single": lambda n: n.startswith("single_transformer_blocks."),
}


# latents, two by two --------------------------------------------------------------------------------------------------
def packed(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
    """Squares of two by two latents as the channels of one place, row by row."""
    return torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(x: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b c h w"]:
    """The latents of that height and width that were `packed`."""
    return torch.nn.functional.pixel_shuffle(x.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def places(height: int, width: int) -> Float[Tensor, "n 3"]:
    """Where packed latents are: no number of an image, row, column."""
    rows, columns = torch.arange(height // 2.0), torch.arange(width // 2.0)
    at = torch.cartesian_prod(rows, columns).view(-1, 2)
    return torch.cat([torch.zeros(len(at), 1), at], 1)


@final
class Flux(FlowBackbone):
    """FLUX.1 dev, schnell and what is made of them: T5 for the text, CLIP for its pooled vector, an MMDiT with single blocks.

    Tokens are T5's. A learned word has a vector for each of the two, T5's first. The dev model is told the scale of guidance
    (`Backbone.told_scale`) and answers as if guided; a pair of predictions is made only at a ``true_cfg`` above 1.

    ``xattn`` is the text stream's part of the joint attention in double blocks, ``xattn-strict`` its keys and values, ``attn``
    the image stream's part with the attention of single blocks; ``esd-x`` and ``esd-x-strict`` are the groups of ESD's
    authors, ``double`` and ``single`` the two kinds of blocks.
    """

    family = "flux"
    pipeline = "FluxPipeline"
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    denoiser = "transformer"
    towers = ("text_encoder", "text_encoder_2")
    clip_towers = ("text_encoder",)
    reader = "text_encoder_2"
    packing = 4
    first = 0  # T5 sets no start token
    filler = "the"  # T5 reads "a" as two tokens
    order = (
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "img_ids",
        "txt_ids",
        "guidance",
    )
    capabilities = frozenset({"pooled", "flow", "distilled", "t5"})

    @override
    @classmethod
    def _check_pipeline(cls, pipe: Any) -> None:
        if not all(getattr(pipe, part, None) is not None for part in cls.parts):
            raise ExpungeError(f"a {type(pipe).__name__} cannot be edited: expected a FluxPipeline with all its parts")
        reads, latent = pipe.transformer.config.in_channels, pipe.vae.config.latent_channels
        if reads != cls.packing * latent:
            raise ExpungeError(
                f"a {type(pipe).__name__} whose transformer has {reads} input channels (fill, control?) cannot be edited: "
                f"expected {cls.packing * latent}, of a text-to-image model"
            )

    @override
    @classmethod
    def kind_by(cls, config: Callable[[str], Mapping[str, Any]]) -> str:
        return "flux" if config("transformer").get("guidance_embeds") else "flux-schnell"

    @override
    @classmethod
    def from_file(
        cls, path: Path, layout: str | None, *, name: str, device: str = "cpu", dtype: str = "float32"
    ) -> "Flux":
        """Open a file of the transformer alone; ``layout`` is a diffusers folder, whose other components are used.

        Raises:
            ExpungeError: if no such folder is given, or the file is not of its model.
        """
        if layout is None or not Path(layout).is_dir():
            given = "nothing" if layout is None else f"'{layout}'"
            raise ExpungeError(
                f"'{path}' holds FLUX's transformer alone, and --model-layout is {given}: expected a diffusers folder of FLUX, "
                "whose text encoders, tokenizers and autoencoder are used"
            )
        own = (cls.pipeline, cls.parts, cls.optional)
        folder = Folder(Path(layout), *own, *device_and_dtype(device, dtype), packing=cls.packing)
        return cls(TransformerFile(path, folder), name)

    @property
    def told(self) -> bool:
        """Whether the denoiser reads the scale of guidance."""
        return bool(self.config("transformer").get("guidance_embeds"))

    @property
    @override
    def timestep_unit(self) -> int:
        """It is told the noise level, from 0 to 1."""
        return self.training_timesteps

    # text -------------------------------------------------------------------------------------------------------------
    @property
    @override
    def prompt_length(self) -> int:
        return LENGTHS[self.told]

    @override
    def word_vectors(self, word: str) -> Float[Tensor, "1 d"]:
        return t5_and_clip.word_vectors(self.texts, word)

    @override
    def word_spread(self) -> Spread:
        return t5_and_clip.word_spread(self.texts)

    @override
    def encode(
        self,
        prompts: Sequence[str] | Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None = None,
        at: Bool[Tensor, "b n"] | None = None,
    ) -> Conditioning:
        """Encode prompts or T5's ids; ``embeddings`` take the place of T5's, and of CLIP's where a filler stands ``at`` them.

        Embeddings as wide as T5's alone are T5's alone. CLIP reads the words of ids, written out.
        """
        ids = prompts if isinstance(prompts, Tensor) else self.tokenize(prompts)
        words = self.spell(ids) if isinstance(prompts, Tensor) else list(prompts)
        t5, clip = t5_and_clip.halves(self.texts, embeddings)
        read = self.texts.read("text_encoder_2", ids, t5, at)
        return Conditioning(
            embeds=read[0],
            pooled=t5_and_clip.pooled(self.texts, words, ids, clip, at),
            tokens=known_ids(ids, embeddings, at),
        )

    # denoising --------------------------------------------------------------------------------------------------------
    @override
    def smallest(self) -> Smallest:
        config = self.component("transformer").config
        x = torch.zeros(1, config.in_channels // self.packing, 2, 2, dtype=self.dtype, device=self.device)
        embeds, pooled = x.new_zeros(1, 1, config.joint_attention_dim), x.new_zeros(1, config.pooled_projection_dim)
        return Smallest(x, Conditioning(embeds=embeds, pooled=pooled))

    @override
    def run_denoiser(
        self, x: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        height, width = x.shape[-2:]
        told = torch.full((len(x),), self.told_scale, device=x.device) if self.told else None
        velocity = self.component("transformer")(
            hidden_states=packed(x),
            timestep=t.to(x.dtype) / self.training_timesteps,
            guidance=told,
            pooled_projections=cond.pooled,
            encoder_hidden_states=cond.embeds,
            txt_ids=x.new_zeros(cond.embeds.shape[1], 3),
            img_ids=places(height, width).to(x),
            return_dict=False,
        )[0]
        return unpacked(velocity, height, width)

    # trajectories -----------------------------------------------------------------------------------------------------
    @override
    def space(self, scheduler: Any, steps: int) -> None:
        """Levels from 1 down in equal steps; that of dev bends them towards noise, the more the larger the image is."""
        config = scheduler.config
        if not {"sigmas", "mu"} <= inspect.signature(scheduler.set_timesteps).parameters.keys():
            raise ExpungeError(f"{self.name} has a {type(scheduler).__name__}: expected a scheduler of a flow")
        height, width = self.latent_size
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        mu = low + (high - low) * (height * width / self.packing - few) / (many - few)
        if config.get("use_flow_sigmas"):
            scheduler.set_timesteps(steps, device=self.device, mu=mu)
        else:
            levels = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).numpy()
            scheduler.set_timesteps(sigmas=levels, device=self.device, mu=mu)

    @property
    @override
    def latent_size(self) -> tuple[int, int]:
        """Of the autoencoder's own size of images; 128 if it has none, as the pipeline has it."""
        config = self.config("vae")
        widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
        size = config.get("sample_size")
        side = 128 if size is None else 2 * (int(size) // 2 ** len(widths))
        return side, side

    # anatomy ----------------------------------------------------------------------------------------------------------
    @override
    def group(self, name: str) -> list[str]:
        if name == "text-embedding":
            raise ExpungeError(
                f"parameter group 'text-embedding' of {self.name}, whose words T5 reads: expected a group of CLIP, or of the "
                "transformer"
            )
        if name in TEXT_GROUPS:
            return self.texts.group(name)
        if name not in _GROUPS:
            raise unknown("parameter group", name, [*_GROUPS, *TEXT_GROUPS])
        return [n for n in (f"transformer.{p}" for p in self._parts.names("transformer")) if _GROUPS[name](n)]

    @override
    def layers(self, name: str) -> list[str]:
        if name not in _LAYERS:
            raise unknown("layer group", name, _LAYERS)
        layers = held.own_layers(self.component("transformer"))
        blocks = [n for n in layers if n.startswith(("transformer_blocks.", "single_transformer_blocks."))]
        return [f"transformer.{n}" for n in blocks if _LAYERS[name](n)]

    @override
    def text_inputs(self) -> list[str]:
        return ["transformer.context_embedder.weight"]

    @override
    def pooled_inputs(self) -> list[str]:
        return ["transformer.time_text_embed.text_embedder.linear_1.weight"]
