#!/usr/bin/env bash
# Training on FLUX with the pipeline's own scheduler, after a preview image.
# `scheduler.scale_noise(latents, timesteps, noise)` mixes noise in as much as each timestep says. Seen: once the pipeline has drawn an image, the
# same call does not look at `timesteps`: it takes the place where that image ended, which has no noise, and returns the clean latents. An
# erasure that shows a preview and goes on trains on clean latents and says nothing. A new `set_timesteps` brings the levels back.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
from heard import heard
from tiny_flux import pipeline

pipe = pipeline()

def shares(timesteps):
    """How much of each latent is noise."""
    clean = torch.zeros(len(timesteps), 4, 2, 2)
    return [round(float(x.mean()), 3) for x in pipe.scheduler.scale_noise(clean, timesteps, torch.ones_like(clean))]

before = shares(pipe.scheduler.timesteps[[0, 300, 600]])
texts = {"prompt_embeds": torch.randn(1, 5, 32), "pooled_prompt_embeds": torch.randn(1, 32)}
with heard() as said:
    pipe(**texts, height=16, width=16, num_inference_steps=4, output_type="latent")
    after = shares(pipe.scheduler.timesteps[:3])
pipe.scheduler.set_timesteps(4)
again = shares(pipe.scheduler.timesteps[:3])
print("share of noise at three high levels: before an image", before, "after one", after, "after set_timesteps", again)
assert min(before) > 0.3 and min(again) > 0.3
assert not said and after == [0, 0, 0], "changed"
PY
