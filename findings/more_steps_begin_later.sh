#!/usr/bin/env bash
# A sampler from a model's configuration, as pages of diffusers change it: `DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`.
# Stable Diffusion's says `timestep_spacing="leading"`. An expert expects it to begin at the last timestep but one step's width, and more steps to
# be no farther from what the model knows, as DDIM's are. Seen: the width is 1000 // (steps + 1), so 100 steps begin at timestep 901, 200 at
# 801 and 500 at 501, where pure noise is taken for latents of that level. On data of which the best answer is known (a mean of 1) the more
# steps above fifty, the more of the mean is lost. UniPC, DEIS and SA do the same.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
import torch
from gaussian import SD, parted

levels = diffusers.DDIMScheduler(**SD).alphas_cumprod.double()

def epsilon(x, t):
    signal, noise = float(levels[int(t)].sqrt()), float((1 - levels[int(t)]).sqrt())
    return parted(x - signal, signal, noise)[1]

stable = diffusers.PNDMScheduler(timestep_spacing="leading", steps_offset=1, skip_prk_steps=True, **SD).config
counts, seen = (20, 50, 100, 200, 500), {}
for name in ("DDIM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver"):
    kind = getattr(diffusers, f"{name}Scheduler")
    for steps in counts:
        sampler = kind.from_config(stable, **({"clip_sample": False} if name == "DDIM" else {}))
        sampler.set_timesteps(steps)
        x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
        more = {"generator": torch.Generator().manual_seed(1)} if name == "SASolver" else {}
        for t in sampler.timesteps:
            x = sampler.step(epsilon(x, t), t, x, **more).prev_sample
        seen[name, steps] = int(sampler.timesteps[0]), round(float(x.mean()), 2)
    print(name, "- steps: first timestep, mean (1 is the data's):", {steps: seen[name, steps] for steps in counts})
assert seen["DDIM", 500][0] == 999 and seen["DDIM", 500][1] >= seen["DDIM", 50][1], "changed"
for name in ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver"):
    assert [seen[name, steps][0] for steps in (100, 200, 500)] == [901, 801, 501], "changed"
    assert seen[name, 500][1] < seen[name, 50][1] - 0.15, "changed"
PY
