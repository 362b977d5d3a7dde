"""Latents: what the autoencoder makes of images, and the noise that sampling starts from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.backbones.pipeline import PipelineBackbone


def encoded(backbone: "PipelineBackbone", pixels: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b c h w"]:
    """Scaled latents of images: the mode of what the autoencoder gives."""
    with _autoencoder(backbone) as vae:
        x = pixels.to(backbone.device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
        read = vae.encode(x)
        z = (read.latents if hasattr(read, "latents") else read.latent_dist.mode()).to(backbone.dtype)
        return backbone.normed(z, vae)


def decoded(backbone: "PipelineBackbone", latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b H W 3"]:
    """Images of scaled latents, on the CPU.

    Raises:
        ExpungeError: if the autoencoder overflows.
    """
    with _autoencoder(backbone) as vae:
        x = vae.decode(backbone.unnormed(latents, vae).to(vae.dtype), return_dict=False)[0].float()
    if latents.isfinite().all() and not x.isfinite().all():  # which would be black
        raise ExpungeError(f"the autoencoder of {backbone.name} gives NaN or infinity in {vae.dtype}: expected float32")
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


@contextmanager
def _autoencoder(backbone: "PipelineBackbone") -> Iterator[Any]:
    """The autoencoder; in float32 while it works where float16 would overflow (SDXL, as its configuration says)."""
    vae = backbone.component("vae")
    upcast = backbone.family == "sdxl" and vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
    try:
        yield vae.to(torch.float32) if upcast else vae
    finally:
        if upcast:
            vae.to(torch.float16)


def drawn(backbone: "PipelineBackbone", generator: torch.Generator) -> Float[Tensor, "1 c h w"]:
    """Starting noise, in float32.

    Raises:
        ExpungeError: if the denoiser reads more than latents.
    """
    channels = backbone.component(backbone.denoiser).config.in_channels
    latent = int(backbone.config("vae").get("latent_channels", 4))
    if channels != backbone.packing * latent:
        raise ExpungeError(
            f"{backbone.name} has a {backbone.denoiser} of {channels} input channels (inpainting?), and latents of {latent}: "
            "expected a text-to-image model"
        )
    return torch.randn((1, latent, *backbone.latent_size), generator=generator).to(backbone.device)


def in_full(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32 at least.

    A schedule's first signal levels are so near 1 that bfloat16 rounds them to it: a scheduler that computes in the precision
    of its latents then adds no noise at all (`findings/no_noise_in_bfloat16.sh`).
    """
    return x if x.dtype == torch.float64 else x.float()


def image_size(backbone: "PipelineBackbone") -> tuple[int, int]:
    """Height and width of the images of such latents, in pixels."""
    config = backbone.config("vae")
    widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
    height, width = backbone.latent_size
    return height * 2 ** (len(widths) - 1), width * 2 ** (len(widths) - 1)
