import numpy as np
import pytest
import scipy.stats
import torch

from expunge.core.errors import ExpungeError
from expunge.maths.correlation import ranks, spearman


def test_ranks_and_their_correlation_are_scipy_s():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30).round(1)  # with ties
    y = (0.5 * x + rng.normal(size=30)).round(1)
    assert len(set(x)) < 30
    assert ranks(torch.tensor(x)).tolist() == pytest.approx(scipy.stats.rankdata(x).tolist())
    found = spearman(torch.tensor(x).float(), torch.tensor(y).float())
    assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-6)
    data = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        random_state=1,
    ).confidence_interval
    assert (found.low, found.high) == (pytest.approx(data.low, abs=0.08), pytest.approx(data.high, abs=0.08))


def test_a_perfect_order_has_no_width_and_too_little_is_refused():
    x = torch.arange(8.0)
    assert tuple(spearman(x, -(x**3))) == pytest.approx((-1, -1, -1))
    for few in (x[:2], torch.ones(5)):
        with pytest.raises(ExpungeError, match="expected three or more"):
            spearman(few, few)
