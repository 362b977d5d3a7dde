"""Tiny models of each layout that single files have."""

import diffusers
import torch
import transformers

from expunge.core.query import Query
from tiny import still, tiny_pipeline, tiny_xl_pipeline

ASKED = [Query(prompt="a dog", seed=5, guidance=5.0, steps=2)]


def tiny_sd2():
    """Stable Diffusion 2's particulars: linear projections, v-prediction, a text encoder that OpenCLIP trained."""
    torch.manual_seed(3)
    parts = tiny_pipeline(prediction="v_prediction").components
    parts["unet"] = diffusers.UNet2DConditionModel(**{**parts["unet"].config, "use_linear_projection": True})
    settings = {**parts["text_encoder"].config.to_dict(), "hidden_act": "gelu"}
    parts["text_encoder"] = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))
    return still(diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False))


def tiny_xl():
    """SDXL with an option of its own, and an autoencoder whose widths differ, as the real one's do."""
    pipe = tiny_xl_pipeline(zeros=False)
    pipe.vae = diffusers.AutoencoderKL(**{**pipe.vae.config, "block_out_channels": (32, 64)})
    return still(pipe)


def unlike(pipe):
    """No two tensors alike: norms begin as ones and zeros, and would hide that two of them changed places."""
    generator = torch.Generator().manual_seed(0)
    for part in pipe.components.values():
        for tensor in part.parameters() if isinstance(part, torch.nn.Module) else ():
            tensor.data += 0.02 * torch.randn(tensor.shape, generator=generator)
    return pipe


MAKERS = {"sd1": tiny_pipeline, "sd2": tiny_sd2, "sdxl": tiny_xl}
