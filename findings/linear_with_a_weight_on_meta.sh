#!/usr/bin/env bash
# torch.nn.functional.linear of an input on the CPU and a weight on the meta device, which holds no numbers (a model that was built empty, or whose
# offloading hooks were lost): it answers with a CPU tensor of the right shape, where matmul raises. A layer that was never loaded answers.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 <<'PY'
import torch

x, weight = torch.ones(3, 4), torch.empty(5, 4, device="meta")
answer = torch.nn.functional.linear(x, weight)
print("linear answers on:", answer.device, "with shape", tuple(answer.shape))
assert answer.device.type == "cpu" and answer.shape == (3, 5), "changed"
try:
    x @ weight.T
except RuntimeError as error:
    print("matmul raises RuntimeError:", str(error)[:60])
else:
    raise SystemExit("changed: matmul answers, too")
PY
