#!/usr/bin/env bash
# Training, or erasing, with the scheduler that a pipeline draws with: `scheduler.add_noise(latents, noise, t)` of DPM-Solver (several
# steps or one), UniPC and DEIS, made from a model's configuration by `from_config` as the pages of diffusers say.
# An expert expects the noise of timestep t, as DDIM's and DDPM's schedulers give it. Seen:
# - Before `set_timesteps` the levels are turned around: timestep 0 gets the noise of 999, and 999 that of 0. Trained so, the model
#   is told of pure noise that it is clean.
# - After `set_timesteps(20)` a timestep that is not one of the 20 gets the noise of the last and cleanest of them, whatever it is.
# Of this nothing is said. Euler's scheduler raises an error in the second case, and is right in the first.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
import torch
from heard import heard

settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}  # Stable Diffusion's
own = diffusers.DDIMScheduler(**settings)
one, none = torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
diffusers.logging.set_verbosity_error()
FRESH, DRAWN = (0, 100, 500, 899, 999), (33, 277, 640, 930)

def levels(scheduler, asked):
    """Noise by signal at each timestep."""
    found = []
    for t in asked:
        noise, signal = (scheduler.add_noise(*pair, torch.tensor([t])).mean() for pair in ((none, one), (one, none)))
        found.append(round(float(noise / signal), 3))
    return found

right = levels(own, FRESH)
print(f"DDIM at {FRESH} {right}, at {DRAWN} {levels(own, DRAWN)}")
for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"):
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(own.config)
    with heard() as said:
        fresh = levels(scheduler, FRESH)
        scheduler.set_timesteps(20)
        drawn = levels(scheduler, DRAWN)
    assert not any("noise" in line for line in said) and not set(DRAWN) & set(scheduler.timesteps.tolist())
    print(f"{name}: fresh {fresh}; after set_timesteps(20) {drawn}")
    cleanest = float(scheduler.sigmas[len(scheduler.timesteps) - 1])
    assert all(abs(a / b - 1) < 0.02 for a, b in zip(fresh, right[::-1])), "changed"
    assert all(abs(level / cleanest - 1) < 0.02 for level in drawn), "changed"
euler = diffusers.EulerDiscreteScheduler.from_config(own.config)
assert all(abs(a / b - 1) < 0.02 for a, b in zip(levels(euler, FRESH), right))
euler.set_timesteps(20)
try:
    levels(euler, DRAWN)
except IndexError:
    print("Euler: fresh as DDIM; after set_timesteps(20) an IndexError")
else:
    raise SystemExit("changed")
PY
