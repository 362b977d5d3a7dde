"""Records: one number a line, with what it takes to believe it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, final

import torch

Z95 = 1.959963984540054


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    """Images behind the number."""
    n_seeds: int
    """Different noise seeds among them (not training seeds)."""
    unit: str
    subject: str
    """``original``, ``edited`` or ``recovered``."""
    eraser: str | None
    concepts: list[str]
    model: str
    split: str
    seed: int
    knowledge: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as one JSON object."""
        return {"format": 1, **asdict(self)}


def wilson(successes: int | float, n: int) -> Interval:
    r"""Wilson's 95 % score interval of a proportion, in percent.

    .. math:: \frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}
    """
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(100 * p, 100 * low, 100 * high)


Runs = Mapping[int, Mapping[str, Sequence[tuple[str, float]]]]
"""Values with the concept each is of, by training seed and split."""


def nested(runs: Runs, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of all values and its 95 % interval: resamples training seeds, then concepts within each run (design.md 5).

    With one training seed the interval covers concepts only.
    """
    seeds = sorted(runs)
    splits = sorted({split for by_split in runs.values() for split in by_split})
    generator = torch.Generator().manual_seed(seed)
    sums, sizes = torch.zeros(2, resamples, len(seeds), len(splits), dtype=torch.float64)
    for i, training in enumerate(seeds):
        for j, split in enumerate(splits):
            clusters: dict[str, list[float]] = {}
            for label, value in runs[training].get(split, ()):
                clusters.setdefault(label, []).append(value)
            if clusters:
                drawn = torch.randint(len(clusters), (resamples, len(clusters)), generator=generator)
                sums[:, i, j] = torch.tensor([sum(c) for c in clusters.values()], dtype=torch.float64)[drawn].sum(1)
                sizes[:, i, j] = torch.tensor([len(c) for c in clusters.values()], dtype=torch.float64)[drawn].sum(1)
    chosen = torch.randint(len(seeds), (resamples, len(seeds)), generator=generator)
    pick = chosen[:, :, None].expand(-1, -1, len(splits))
    means = sums.gather(1, pick).sum((1, 2)) / sizes.gather(1, pick).sum((1, 2))
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    values = [value for by_split in runs.values() for row in by_split.values() for _, value in row]
    value = math.fsum(values) / len(values)
    return Interval(value, min(low, value), max(high, value))


def clustered(values: Sequence[Sequence[float]], resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of all values and its 95 % interval, by resampling whole clusters (prompts, classes) with replacement."""
    sums = torch.tensor([sum(v) for v in values], dtype=torch.float64)
    sizes = torch.tensor([len(v) for v in values], dtype=torch.float64)
    drawn = torch.randint(len(sums), (resamples, len(sums)), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(sums.sum() / sizes.sum()), low, high)
