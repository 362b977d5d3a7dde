"""Records: one number a line, with what it takes to believe it.

Whoever reads records needs no torch: the functions that resample import it when they are called.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, final

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
    """Mean of all values and its 95 % interval: resamples training seeds, then concepts (design.md 5).

    A concept is drawn for all runs at once, since what makes it easy or hard is the same in each of them. With one training
    seed the interval covers concepts only; with two it reaches both seeds' values.
    """
    import torch

    seeds = sorted(runs)
    labels = sorted({label for by_split in runs.values() for row in by_split.values() for label, _ in row})
    sums, sizes = torch.zeros(2, len(seeds), len(labels), dtype=torch.float64)
    column = {label: number for number, label in enumerate(labels)}
    for i, training in enumerate(seeds):
        for row in runs[training].values():
            for label, value in row:
                sums[i, column[label]] += value
                sizes[i, column[label]] += 1
    generator = torch.Generator().manual_seed(seed)
    concepts = _draws(resamples, len(labels), generator)
    trainings = _draws(resamples, len(seeds), generator)
    total, count = (torch.einsum("rs,sc,rc->r", trainings, part, concepts) for part in (sums, sizes))
    seen = count > 0  # a resample may hold no concept of the drawn runs
    means = total[seen] / count[seen]
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = float(sums.sum() / sizes.sum())
    return Interval(value, min(low, value), max(high, value))


STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201)
"""Student's 97.5 % quantiles for 1 to 11 degrees of freedom."""
FEW = len(STUDENT) + 1
"""Clusters of which a bootstrap is too narrow: its width is 0.63 of what it should be over five, 0.85 over twelve."""


def mean_of(runs: Runs, resamples: int = 2000, *, prompts: bool = False) -> Interval:
    """Mean of values and its 95 % interval: `nested`, never narrower than Student's of few clusters.

    Clusters are concepts. Of one concept they are its prompts, if labels are those (``prompts``), else single values; and
    training seeds. A bootstrap over two to twelve clusters is too narrow: all of three agree in sign a quarter of the time
    by chance.
    """
    by_label, by_seed = _by_label(runs), _by_seed(runs)
    alone = len(by_label) < 2
    if alone:
        runs = {
            seed: {split: [(f"{label} {i}", v) for i, (label, v) in enumerate(row)] for split, row in by_split.items()}
            for seed, by_split in runs.items()
        }
    interval = nested(runs, resamples)
    if not alone:
        interval = _student(interval, by_label)
    if alone or prompts:
        interval = _student(interval, by_seed)
    return interval


def share_of(runs: Runs, least: float = 0.0, *, prompts: bool = False) -> Interval:
    """Mean of shares, 0 to 1, or of their differences (``least`` is -1), and its 95 % interval: as `mean_of`, no farther."""
    value, low, high = mean_of(runs, prompts=prompts)
    return Interval(value, max(low, least), min(high, 1.0))


def _by_label(runs: Runs) -> list[list[float]]:
    by: dict[str, list[float]] = {}
    for by_split in runs.values():
        for row in by_split.values():
            for label, value in row:
                by.setdefault(label, []).append(value)
    return list(by.values())


def _by_seed(runs: Runs) -> list[list[float]]:
    return [[value for row in by_split.values() for _, value in row] for by_split in runs.values()]


def _student(interval: Interval, by: Sequence[Sequence[float]]) -> Interval:
    """``interval``, never narrower than Student's of the means of the clusters ``by``, if there are few."""
    import torch

    means = torch.tensor([sum(values) / len(values) for values in by if values], dtype=torch.float64)
    if not 2 <= len(means) <= FEW:
        return interval
    value, low, high = interval
    half = STUDENT[len(means) - 2] * float(means.std()) / math.sqrt(len(means))
    return Interval(value, min(low, value - half), max(high, value + half))


def of_attacks(runs: Runs, least: float = 0.0) -> Interval:
    """Mean of shares that independent runs of an attack gave, 0 to 1, and its 95 % interval.

    A label is a concept and a run; all images that it has for a training seed and split stand or fall with what was found.
    `nested` over training seeds and labels, never narrower than Student's of few clusters: of labels, which seeds share (a
    word is learned for the same thing), or of seeds where there is one label. A single run says nothing of others: its interval
    is all there is, from ``least`` (-1 for differences) to 1.
    """
    rows = [
        (seed, f"{split} {label}", value)
        for seed, by_split in runs.items()
        for split, row in by_split.items()
        for label, value in row
    ]
    axis = 1 if len({label for _, label, _ in rows}) > 1 else 0
    by: dict[Any, list[float]] = {}
    for row in rows:
        by.setdefault(row[axis], []).append(row[2])
    interval = nested(runs)
    low, high = (least, 1.0) if len(by) < 2 else _student(interval, list(by.values()))[1:]
    return Interval(interval.value, max(low, least), min(high, 1.0))


def _draws(resamples: int, n: int, generator: Any) -> Any:
    """How often each of ``n`` is drawn in each resample of ``n`` with replacement: a float64 tensor ``[resamples, n]``."""
    import torch

    drawn = torch.randint(n, (resamples, n), generator=generator)
    return torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(drawn.shape, dtype=torch.float64)
    )


def paired_proportions(ones: Sequence[float], others: Sequence[float]) -> Interval:
    r"""Newcombe's 95 % interval of the difference of two paired proportions, in points (1998, Stat. Med. 17:2635, method 10).

    Wilson's limits of both, combined with the correlation of the pairs: it has a width where all pairs agree.
    """
    n = len(ones)
    both = sum(1 for a, b in zip(ones, others, strict=True) if a and b)
    first, second = sum(map(bool, ones)), sum(map(bool, others))
    a, b, c, d = both, first - both, second - both, n - first - second + both
    (p1, l1, u1), (p2, l2, u2) = ([v / 100 for v in wilson(k, n)] for k in (first, second))
    product = (a + b) * (c + d) * (a + c) * (b + d)
    top = a * d - b * c
    top = max(top - n / 2, 0) if top > 0 else top
    phi = top / math.sqrt(product) if product else 0.0
    low = math.sqrt(max((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2, 0))
    high = math.sqrt(max((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2, 0))
    return Interval(100 * (p1 - p2), 100 * (p1 - p2 - low), 100 * (p1 - p2 + high))


def clustered(values: Sequence[Sequence[float]], resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of all values and its 95 % interval, by resampling whole clusters (prompts, classes) with replacement."""
    row = [(f"{number:09}", value) for number, cluster in enumerate(values) for value in cluster]
    return nested({0: {"": row}}, resamples, seed)


def spread(values: Sequence[Sequence[float]], resamples: int = 2000, seed: int = 0) -> Interval:
    """Standard deviation of all values, and its 95 % interval by resampling whole clusters with replacement."""
    import torch

    clusters = [torch.tensor(list(cluster), dtype=torch.float64) for cluster in values]
    sums = torch.stack([torch.stack([torch.tensor(float(len(c))), c.sum(), c.square().sum()]) for c in clusters])
    drawn = _draws(resamples, len(sums), torch.Generator().manual_seed(seed)) @ sums
    n, total, squares = torch.cat([sums.sum(0)[None], drawn]).unbind(1)
    deviations = ((squares - total.square() / n).clamp_min(0) / (n - 1).clamp_min(1)).sqrt()
    low, high = torch.quantile(deviations[1:], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(deviations[0]), low, high)


def in_percent(fraction: Interval) -> Interval:
    """A bootstrapped interval in percent."""
    return Interval(*(100 * part for part in fraction))


def hull(percent: Interval, fraction: Interval) -> Interval:
    """The value of an interval in percent, with limits that reach those of a bootstrapped one (a fraction) too."""
    return Interval(percent.value, min(percent.low, 100 * fraction.low), max(percent.high, 100 * fraction.high))
