"""A genetic search over sequences of discrete genes: the best go on, are crossed at one point, and mutate."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Score = Callable[[Sequence[Int[Tensor, "_ k"]]], Sequence[Float[Tensor, "_"]]]
"""What each sequence of each of several populations loses; all are told at once, so that they can be evaluated together."""


class Found(NamedTuple):
    """The best sequence that a search has seen."""

    genes: Int[Tensor, "k"]
    loss: float


def drawn(rows: int, length: int, alleles: Int[Tensor, "v"], generator: torch.Generator) -> Int[Tensor, "n k"]:
    """Sequences whose genes are drawn from ``alleles``, each alike."""
    return alleles[torch.randint(0, len(alleles), (rows, length), generator=generator)]


def fittest(losses: Float[Tensor, "n"], count: int) -> Int[Tensor, "m"]:
    """The ``count`` that lose least, best first, or all if they are fewer; of equals the earlier one."""
    return losses.argsort(stable=True)[:count]


def crossed(parents: Int[Tensor, "m k"], rate: float, generator: torch.Generator) -> Int[Tensor, "n k"]:
    """Children of ``parents``, two for each that is crossed, which it is at ``rate``: with any parent, at any point.

    Two children of one pair have each gene of both once. The point lies before the first gene (the parents again) or between
    two.
    """
    count, length = parents.shape
    mothers = (torch.rand(count, generator=generator) < rate).nonzero()[:, 0]
    fathers = torch.randint(0, count, (count,), generator=generator)[mothers]
    points = torch.randint(0, length, (count,), generator=generator)[mothers]
    first = torch.arange(length)[None] < points[:, None]
    one, other = parents[mothers], parents[fathers]
    return torch.stack([torch.where(first, one, other), torch.where(first, other, one)], 1).flatten(0, 1)


def mutated(
    population: Int[Tensor, "n k"], rate: float, alleles: Int[Tensor, "v"], generator: torch.Generator
) -> Int[Tensor, "n k"]:
    """The population with one gene of a sequence drawn anew, at ``rate`` for each sequence."""
    count, length = population.shape
    rows = (torch.rand(count, generator=generator) < rate).nonzero()[:, 0]
    places = torch.randint(0, length, (count,), generator=generator)[rows]
    genes = alleles[torch.randint(0, len(alleles), (count,), generator=generator)[rows]]
    return population.index_put((rows, places), genes)


def minimised(
    score: Score,
    first: Sequence[Int[Tensor, "_ k"]],
    generations: int,
    following: Callable[[int, Int[Tensor, "n k"], Float[Tensor, "n"]], Int[Tensor, "m k"]],
) -> list[Found]:
    """The best sequence of each population that was seen in so many ``generations``, of which ``first`` is one.

    ``following`` makes the next generation of a population, given by its number, from its sequences and what they lose.
    """
    populations = list(first)
    best: list[Found | None] = [None] * len(populations)
    for generation in range(generations):
        losses = score(populations)
        for i, (population, lost) in enumerate(zip(populations, losses, strict=True)):
            at, now = int(lost.argmin()), best[i]
            if now is None or float(lost[at]) < now.loss:
                best[i] = Found(population[at], float(lost[at]))
        if generation < generations - 1:
            populations = [following(i, p, lost) for i, (p, lost) in enumerate(zip(populations, losses, strict=True))]
    return [found for found in best if found is not None]
