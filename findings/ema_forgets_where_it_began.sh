#!/usr/bin/env bash
# diffusers' EMAModel, as the slow teacher of a self-distilled erasure (SDD) or for weights that are kept apart from training.
# With `decay=0.999`, and warm-up off as by default, a thousandth of each update is expected to enter, and the beginning to last for about a
# thousand. Seen: the first `step` has a decay of 0, so the average *becomes* the trained weights, and nothing of what it was made from is
# left. After that it is (1 + n) / (10 + n) until that reaches `decay`: 0.917 at update 100, 0.999 only after 8,990. `use_ema_warmup=False`
# leaves out another warm-up, not this one. `min_decay=0.999` lasts from the second update on; nothing does at the first.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
from diffusers.training_utils import EMAModel

def averaged(**settings):
    """A weight that is 0 when the average begins, and 1 at each of 100 updates: the average after the first, and the last decay."""
    weight = torch.nn.Parameter(torch.zeros(1))
    average = EMAModel([weight], decay=0.999, **settings)
    weight.data.fill_(1)
    average.step([weight])
    first = average.shadow_params[0].item()
    for _ in range(99):
        average.step([weight])
    return first, average.cur_decay_value

plain, least = averaged(), averaged(min_decay=0.999)
print("average after one update (expected 0.001), decay at update 100 (expected 0.999):", plain, "with min_decay:", least)
assert plain[0] == least[0] == 1, "changed"
assert plain[1] < 0.92 and least[1] == 0.999
PY
