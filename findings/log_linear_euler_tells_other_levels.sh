#!/usr/bin/env bash
# `EulerDiscreteScheduler` with `interpolation_type="log_linear"`, whose noise levels are to be even in their logarithm.
# An expert expects the model to be told the level that its latents have, as with `use_exponential_sigmas`, which asks for the same levels.
# Seen: latents have the new levels, and timesteps are those of the old ones. At any number of steps the spread of what is drawn is a
# quarter too small, on data of which the best answer is known; with `use_exponential_sigmas` it is right.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
from gaussian import SD, epsilon, spread

seen = {}
for name, option in (("log_linear", {"interpolation_type": "log_linear"}), ("exponential", {"use_exponential_sigmas": True})):
    sampler = diffusers.EulerDiscreteScheduler(**option, **SD)
    seen[name] = [spread(sampler, steps, epsilon) for steps in (50, 200)]
    sampler.set_timesteps(5)
    print(name, "- levels", [round(float(s), 2) for s in sampler.sigmas], "at times", [round(float(t)) for t in sampler.timesteps])
    print("  spread at 50 and 200 steps (1 is the data's):", *seen[name])
assert all(0.7 < s < 0.8 for s in seen["log_linear"]) and seen["exponential"][1] > 0.97, "changed"
PY
