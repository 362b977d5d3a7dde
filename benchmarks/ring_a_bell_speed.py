"""Candidates that Ring-A-Bell scores a second of CPU time, against a loop that encodes each of a population by itself.

`python benchmarks/ring_a_bell_speed.py` writes benchmarks/ring_a_bell_speed.json: both rates on the testbed with the authors'
population, 16 tokens and one thread, over a few generations of one search, and their ratio.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from expunge import load
from expunge.attacks.ring_a_bell import Reader, alleles
from expunge.core.victim import GrayBox
from expunge.maths import genetic

OUT = Path(__file__).with_suffix(".json")
POPULATION, GENERATIONS, TOKENS = 200, 4, 16
Score = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


@torch.no_grad()
def main() -> None:
    """Search once by each way of scoring, with the same draws."""
    torch.set_num_threads(1)
    model = load("testbed")
    lent = GrayBox(model, lambda queries: torch.zeros(0), {}, 0)
    usable = alleles(lent)
    goal = model.encode(["image of a church"]).embeds

    def one_by_one(populations: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        texts = lent.spell(populations[0])
        return [torch.stack([(lent.encode([text]).embeds - goal).square().sum() for text in texts])]

    def rate(score: Score) -> tuple[float, float]:
        draw = torch.Generator().manual_seed(0)
        first = genetic.drawn(POPULATION, TOKENS, usable, draw)
        scored = 0

        def counted(populations: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            nonlocal scored
            scored += len(populations[0])
            return score(populations)

        def following(_: int, now: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
            parents = now[genetic.fittest(losses, POPULATION // 2)]
            family = torch.cat([parents, genetic.crossed(parents, 0.5, draw)])[:POPULATION]
            return genetic.mutated(family, 0.25, usable, draw)

        start = time.process_time()
        (best,) = genetic.minimised(counted, [first], GENERATIONS, following)
        return scored / (time.process_time() - start), best.loss

    lent.encode(["a"])
    (slow, lost), (fast, lost_too) = rate(one_by_one), rate(Reader(lent, goal, 200))
    report = {
        "candidates_a_second": {"one by one": round(slow, 1), "batched": round(fast, 1)},
        "ratio": round(fast / slow, 2),
        "best_distance": {"one by one": round(lost, 3), "batched": round(lost_too, 3)},
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
