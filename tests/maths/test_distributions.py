"""Distances of sets against closed forms, loops, SciPy and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy import linalg

from expunge.core.record import Z95
from expunge.maths.distributions import frechet, frechet_of, mmd_of


def sets(n=40, m=30, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, d, generator=generator, dtype=torch.float64)
    second = (
        torch.randn(m, d, generator=generator, dtype=torch.float64) @ torch.randn(d, d, generator=generator).double()
    )
    return first, second + 0.5


def test_gaussians_with_commuting_covariances():
    a, b = torch.tensor([4.0, 1.0, 0.0]).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    mean, other = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.0, 2.0, 5.0]).double()
    wanted = 1 + 4 + (2 - 1) ** 2 + (1 - 3) ** 2 + 0.5**2
    assert frechet(mean, a.diag(), other, b.diag()) == pytest.approx(wanted)


def test_frechet_equals_scipy_s_matrix_root():
    first, second = sets()
    x, y = first.numpy(), second.numpy()
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
    assert frechet_of(first, second, 2).value == pytest.approx(wanted, rel=1e-9)


def test_equals_torchmetrics_on_the_same_features():
    from torchmetrics.image import FrechetInceptionDistance, KernelInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x.flatten(1)

    first, second = sets(n=40, m=40)
    fid = FrechetInceptionDistance(feature=Flat(), input_img_size=(1, 2, 3)).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=40).set_dtype(torch.float64)
    for metric in (fid, kid):
        metric.update(second.view(-1, 1, 2, 3), real=True)
        metric.update(first.view(-1, 1, 2, 3), real=False)
    assert frechet_of(first, second, 2).value == pytest.approx(float(fid.compute()), rel=1e-5)
    assert mmd_of(first, second).value == pytest.approx(float(kid.compute()[0]), rel=1e-5)


def test_sets_with_fewer_images_than_features():
    first, second = sets(n=4, m=3)
    assert frechet_of(first, first, 2).value == pytest.approx(0, abs=1e-9)
    assert np.isfinite(frechet_of(first, second, 2).value)


def test_frechet_s_interval_covers_the_value_and_narrows_with_n():
    widths = []
    for n in (100, 1600):
        value, low, high = frechet_of(*sets(n=n, m=500), resamples=40)
        assert low < value < high
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 8, "four times as narrow on sixteen times as many images"


def by_hand(x, y):
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    inner = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    other = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    across = [kernel(a, b) for a in x for b in y]
    return sum(inner) / len(inner) + sum(other) / len(other) - 2 * sum(across) / len(across)


def test_mmd_equals_its_sums_and_its_interval_a_jackknife_in_loops(monkeypatch):
    monkeypatch.setattr("expunge.maths.distributions.ROWS", 5)
    first, second = sets(n=12, m=9)
    found = mmd_of(first, second)
    assert found.value == pytest.approx(by_hand(first, second))
    left = [by_hand(torch.cat([first[:i], first[i + 1 :]]), second) for i in range(12)]
    spread = (11 / 12 * sum((v - sum(left) / 12) ** 2 for v in left)) ** 0.5
    assert found.high - found.value == pytest.approx(Z95 * spread)
    assert found.value - found.low == pytest.approx(Z95 * spread)
