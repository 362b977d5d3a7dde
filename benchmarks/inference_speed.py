"""Evaluations a second of the testbed's denoiser, by what is cheap to try: threads, batches, memory format, inference mode.

`python benchmarks/inference_speed.py` writes benchmarks/inference_speed.json: medians, ratios to one thread and a batch of 64,
and how far predictions are from that run's. The testbed makes 16 images at a time by it, 32 evaluations.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from expunge import load

OUT = Path(__file__).with_suffix(".json")


def seconds(run: Callable[[], object], rounds: int = 5) -> float:
    """The median time of a call, after one that is not timed."""
    run()
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.no_grad()
def main() -> None:
    """Time each way in turn."""
    model = load("testbed")
    text = model.encode(["image of a church"])
    unet = model.component("unet")

    def evaluate(batch: int) -> torch.Tensor:
        x = torch.cat([model.noise(i) for i in range(batch)])
        return model.predict(x, 500, text.expand(batch))

    torch.set_num_threads(1)
    wanted = evaluate(64)
    rates: dict[str, float] = {"one thread, batch 64": 64 / seconds(lambda: evaluate(64))}
    apart: dict[str, float] = {}
    for batch in (8, 16, 32, 128):
        rates[f"one thread, batch {batch}"] = batch / seconds(lambda batch=batch: evaluate(batch))
    torch.set_num_threads(2)
    rates["two threads, batch 64"] = 64 / seconds(lambda: evaluate(64))
    torch.set_num_threads(1)
    with torch.inference_mode():
        rates["one thread, inference mode"] = 64 / seconds(lambda: evaluate(64))
    unet.to(memory_format=torch.channels_last)
    rates["one thread, channels last"] = 64 / seconds(lambda: evaluate(64))
    rates["one thread, batch 32, channels last"] = 32 / seconds(lambda: evaluate(32))
    apart["one thread, channels last"] = float((evaluate(64) - wanted).abs().max())
    unet.to(memory_format=torch.contiguous_format)
    base = rates["one thread, batch 64"]
    report = {
        "evaluations_a_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio": {name: round(rate / base, 2) for name, rate in rates.items()},
        "largest_difference": apart,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
