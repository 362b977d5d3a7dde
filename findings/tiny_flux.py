"""FLUX's classes with random weights, some thousand numbers in all, and no text encoders: texts are given as vectors."""

import diffusers
import torch


def pipeline() -> diffusers.FluxPipeline:
    """The same pipeline at every call."""
    torch.manual_seed(0)
    pipe = diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=True,
        ),
        vae=diffusers.AutoencoderKL(latent_channels=1, block_out_channels=(32,), norm_num_groups=8, shift_factor=0.0),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
