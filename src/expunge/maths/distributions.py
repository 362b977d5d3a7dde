"""Distances of two sets of features: Fréchet's, and the squared maximum mean discrepancy."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.core.record import Z95, Interval

ROWS = 1024
"""Rows of a kernel matrix at a time."""


def frechet(
    mean: Float[Tensor, "d"], cov: Float[Tensor, "d d"], other_mean: Float[Tensor, "d"], other_cov: Float[Tensor, "d d"]
) -> float:
    r"""Squared Fréchet distance of two Gaussians, in double precision.

    .. math:: \|\mu - \nu\|^2 + \mathrm{tr}\big(\Sigma + T - 2 (\Sigma T)^{1/2}\big)

    The trace of the root is the sum of the singular values of :math:`\Sigma^{1/2} T^{1/2}`: real for covariances of any rank,
    where a root of the product needs care (and SciPy's ``sqrtm`` changed its signature in 1.18).
    """
    joint = torch.linalg.svdvals(root(cov) @ root(other_cov)).sum()
    apart = (mean - other_mean).square().sum()
    return max(float(apart + cov.trace() + other_cov.trace() - 2 * joint), 0.0)


def root(cov: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric square root of a covariance matrix."""
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_of(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"], resamples: int, seed: int = 0) -> Interval:
    """Fréchet distance of the Gaussians fitted to two sets, and its 95 % interval over draws of the ``first``.

    The interval is the value and 1.96 standard deviations of a bootstrap to either side. Its percentiles would not do: a
    resample has fewer different images than the set, which raises the distance, so they may lie above the value itself.
    """
    mean, cov = second.mean(0), second.T.cov()
    value = frechet(first.mean(0), first.T.cov(), mean, cov)
    generator = torch.Generator().manual_seed(seed)
    drawn = [first[torch.randint(len(first), (len(first),), generator=generator)] for _ in range(resamples)]
    spread = torch.tensor([frechet(x.mean(0), x.T.cov(), mean, cov) for x in drawn]).std().item()
    return Interval(value, max(value - Z95 * spread, 0.0), value + Z95 * spread)


def mmd_of(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> Interval:
    r"""Unbiased squared maximum mean discrepancy with KID's kernel :math:`(x^\top y / d + 1)^3`, and its 95 % interval.

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j)}{n (n - 1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{m (m - 1)}
        - \frac{2 \sum_{i,j} k(x_i, y_j)}{n m}

    The interval is a jackknife over the ``first`` set's images: each left out once, which the sums of the kernel's rows tell.
    """
    n, m = len(first), len(second)
    inner, across = _row_sums(first, first) - _kernel_diagonal(first), _row_sums(first, second)
    constant = float((_row_sums(second, second) - _kernel_diagonal(second)).sum()) / (m * (m - 1))
    value = float(inner.sum()) / (n * (n - 1)) - 2 * float(across.sum()) / (n * m) + constant
    # without image i: its row and its column are gone
    left = (inner.sum() - 2 * inner) / ((n - 1) * (n - 2)) - 2 * (across.sum() - across) / ((n - 1) * m) + constant
    spread = math.sqrt((n - 1) / n * float((left - left.mean()).square().sum()))
    return Interval(value, value - Z95 * spread, value + Z95 * spread)


def _row_sums(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n"]:
    return torch.cat([((part @ y.T) / x.shape[1] + 1).pow(3).sum(1) for part in x.split(ROWS)])


def _kernel_diagonal(x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    return (x.square().sum(1) / x.shape[1] + 1).pow(3)
