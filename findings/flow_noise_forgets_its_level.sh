#!/usr/bin/env bash
# Training on FLUX with the pipeline's own scheduler, after a preview image.
# `scheduler.scale_noise(latents, timesteps, noise)` mixes noise in as much as each timestep says. Seen: once the pipeline has drawn an image, the
# same call does not look at `timesteps`: it takes the place where that image ended, which has no noise, and returns the clean latents. An
# erasure that shows a preview and goes on trains on clean latents and says nothing. A new `set_timesteps` brings the levels back.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
import torch

torch.manual_seed(0)
pipe = diffusers.FluxPipeline(
    transformer=diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    ),
    vae=diffusers.AutoencoderKL(latent_channels=1, block_out_channels=(32,), norm_num_groups=8),
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
)
pipe.set_progress_bar_config(disable=True)

def shares(timesteps):
    """How much of each latent is noise."""
    clean = torch.zeros(len(timesteps), 4, 2, 2)
    return [round(float(x.mean()), 3) for x in pipe.scheduler.scale_noise(clean, timesteps, torch.ones_like(clean))]

before = shares(pipe.scheduler.timesteps[[0, 300, 600]])
texts = {"prompt_embeds": torch.randn(1, 5, 32), "pooled_prompt_embeds": torch.randn(1, 32)}
pipe(**texts, height=16, width=16, num_inference_steps=4, output_type="latent")
after = shares(pipe.scheduler.timesteps[:3])
pipe.scheduler.set_timesteps(4)
again = shares(pipe.scheduler.timesteps[:3])
print("share of noise at three high levels: before an image", before, "after one", after, "after set_timesteps", again)
assert min(before) > 0.3 and min(again) > 0.3
assert after == [0, 0, 0], "changed"
PY
