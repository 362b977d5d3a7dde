#!/usr/bin/env bash
# `DPMSolverMultistepScheduler` with `algorithm_type="sde-dpmsolver++"` and `solver_order=3`, what other programs call DPM++ 3M SDE.
# An expert expects what holds for any sampler: the more steps, the nearer to what the model knows. Seen, on data of which the best answer
# is known: the second order draws its spread to a hundredth, the third a quarter too much at 200 steps, and more of it the more steps it
# has: noise that is no image's. (The weight of its second difference should vanish for small steps, and goes to -1.)
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
from gaussian import SD, epsilon, spread

seen = {}
for order in (1, 2, 3):
    for steps in (25, 50, 100, 200):
        sampler = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=order, **SD)
        seen[order, steps] = spread(sampler, steps, epsilon)
    print(f"order {order}, spread at 25, 50, 100, 200 steps (1 is the data's):", *(seen[order, n] for n in (25, 50, 100, 200)))
assert all(abs(seen[order, 200] - 1) < 0.04 for order in (1, 2)), "changed"
assert seen[3, 50] > 1.08 and seen[3, 200] > seen[3, 100] > seen[3, 50], "changed"
PY
