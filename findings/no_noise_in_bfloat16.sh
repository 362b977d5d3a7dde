#!/usr/bin/env bash
# add_noise of a scheduler that counts in signal levels (DDPM, DDIM, PNDM), on latents in bfloat16: at Stable
# Diffusion's first two timesteps it adds no noise at all, and up to a quarter too much or an eighth too little at the next ones.
# Expected by most: bfloat16's 8 bits, an error below a percent. The levels are cast to the latents' precision before 1 - level is taken:
# 0.99915 rounds to 1. Training loops in bfloat16 meet it without a word; so does get_velocity's share of the image. In float16 the first
# timestep has 7 percent too much.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from heard import heard

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))

def strength(kind, t, dtype):
    added = kind(**BETAS).add_noise(torch.zeros_like(noise).to(dtype), noise.to(dtype), torch.tensor([t]))
    return float(added.float().std() / noise.std())

for kind in (DDPMScheduler, DDIMScheduler, PNDMScheduler):
    with heard() as said:
        full, half, brain = ([strength(kind, t, d) for t in (0, 1, 2, 5)] for d in (torch.float32, torch.float16, torch.bfloat16))
    print(f"{kind.__name__}: noise at t = 0, 1, 2, 5: float32 {[round(v, 4) for v in full]}, "
          f"float16 {[round(v, 4) for v in half]}, bfloat16 {[round(v, 4) for v in brain]}")
    assert not said and full[0] > 0.029 and brain[:2] == [0.0, 0.0], "changed"
    assert brain[2] > 1.2 * full[2] and brain[3] < 0.9 * full[3] and half[0] > 1.05 * full[0], "changed"
PY
