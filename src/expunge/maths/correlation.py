"""How two rows of numbers go together."""

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.core.errors import ExpungeError
from expunge.core.record import Interval


def ranks(values: Float[Tensor, "*r n"]) -> Float[Tensor, "*r n"]:
    """The rank of each value in its row, from 1; equal values share the mean of their ranks."""
    below = (values[..., None, :] < values[..., :, None]).double().sum(-1)
    alike = (values[..., None, :] == values[..., :, None]).double().sum(-1)
    return below + (alike + 1) / 2


def spearman(x: Float[Tensor, "n"], y: Float[Tensor, "n"], resamples: int = 1000, seed: int = 0) -> Interval:
    r"""Spearman's :math:`\rho`, Pearson's correlation of ranks, and its 95 % interval by resampling pairs.

    Resamples in which all values of one row are equal have no correlation and are left out.

    Raises:
        ExpungeError: for fewer than three pairs, or a row of equal values.
    """
    x, y = x.double(), y.double()
    if len(x) < 3 or (x == x[0]).all() or (y == y[0]).all():
        raise ExpungeError(f"a rank correlation of {len(x)} pairs: expected three or more, and not all alike")
    drawn = torch.randint(len(x), (resamples, len(x)), generator=torch.Generator().manual_seed(seed))
    found = torch.cat([_of_ranks(ranks(x[part]), ranks(y[part])) for part in drawn.split(100)])
    low, high = torch.quantile(found[found.isfinite()], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = float(_of_ranks(ranks(x)[None], ranks(y)[None]))
    return Interval(value, min(low, value), max(high, value))


def _of_ranks(a: Float[Tensor, "r n"], b: Float[Tensor, "r n"]) -> Float[Tensor, "r"]:
    """Pearson's correlation of each row; not a number where one of the two does not vary."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
