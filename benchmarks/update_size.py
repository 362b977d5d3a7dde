"""One update of ESD-x and KPOP at Stable Diffusion 1.4's real size: memory, and time beside its bare evaluations.

`make bench-update`.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from uce_size import checkpoint, peak_bytes

RESULT = Path(__file__).with_suffix(".json")
CASES = [
    ("esd", "float32", False),
    ("esd", "bfloat16", False),
    ("kpop", "float32", False),
    ("kpop", "float32", True),
    ("kpop", "bfloat16", False),
    ("kpop", "bfloat16", True),
]
"""Method, precision, whether activations are computed again on the way back."""
SETTINGS = {"iterations": 3, "batch": 1, "sampling": {"arm": "online-frozen", "sampling_steps": 1}}
"""Of one step a trajectory, so that an update is its two frozen and one (ESD) or three (KPOP) trained evaluations."""


def bare(backbone, method: str) -> None:
    """The evaluations and gradients of one update, by themselves."""
    import torch

    from expunge.erasers.kpop import injected

    x, cond, null = backbone.noise(1), backbone.encode(["church"]), backbone.unconditional()
    names = backbone.group("xattn")
    learned = {n: t.clone().requires_grad_() for n, t in backbone.tensors(names).items()}
    with torch.no_grad():
        for text in (cond, null):
            backbone.predict(x, 500, text)
    if method == "kpop":
        tokens = torch.randn(1, 10, cond.embeds.shape[-1]).to(cond.embeds).requires_grad_()
        frozen = {n: t.detach() for n, t in learned.items()}
        with backbone.weights(frozen):
            torch.autograd.grad(backbone.predict(x, 500, injected(cond, tokens, "mid")).float().square().mean(), tokens)
    with backbone.weights(learned):
        loss = backbone.predict(x, 500, cond).float().square().mean()
        if method == "kpop":
            loss = loss + backbone.predict(x, 500, injected(cond, tokens.detach(), "mid")).float().square().mean()
        torch.autograd.grad(loss, list(learned.values()), allow_unused=True)


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(path: str, method: str, dtype: str, checkpointing: bool) -> dict:
    """Time the third update, and the bare evaluations before and after it."""
    import torch

    from expunge import backbones
    from expunge.core.concept import Concept
    from expunge.core.eraser import Task
    from expunge.stages import erase

    torch.set_num_threads(2)
    backbone = backbones.load(path, dtype=dtype)
    backbone.checkpointing = checkpointing
    timed(lambda: bare(backbone, method))
    alone = [timed(lambda: bare(backbone, method))]
    eraser = erase.build(method, SETTINGS, None)
    steps = iter(eraser.steps(backbone, Task(targets=[Concept(name="church")], salt="none")))
    next(steps), next(steps)
    update = timed(lambda: next(steps))
    del steps
    alone.append(timed(lambda: bare(backbone, method)))
    return {
        "method": method,
        "dtype": dtype,
        "checkpointing": checkpointing,
        "update_seconds": round(update, 2),
        "bare_seconds": [round(s, 2) for s in alone],
        "ratio": round(update / (sum(alone) / len(alone)), 3),
        "peak_bytes": peak_bytes(),
    }


def main() -> None:
    """Each case in a process of its own, whose peak is its own."""
    if len(sys.argv) > 1:
        path, method, dtype, checkpointing = sys.argv[1:]
        print(json.dumps(measure(path, method, dtype, checkpointing == "True")))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        path = str(Path(temporary) / "sd")
        parameters = checkpoint(Path(path))
        for case in CASES:
            command = [sys.executable, __file__, path, *map(str, case)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
    small = [r for r in rows if r["dtype"] == "float32" and r["peak_bytes"] <= 12e9]
    result = {
        "format": 1,
        "unet_parameters": parameters,
        "latent": [64, 64],
        "rows": rows,
        "target": {"float32_peak_bytes": 12e9, "ratio": 1.2},
        "met": {
            "float32_peak_bytes": {r["method"] for r in small} == {"esd", "kpop"},
            "ratio": all(r["ratio"] <= 1.2 for r in rows),
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
