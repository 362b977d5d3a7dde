import torch

from expunge.core.peak_bytes import PeakBytes


def test_the_peak_counts_what_is_held_at_one_time_and_a_view_not_twice():
    before = torch.zeros(10_000)
    with PeakBytes() as memory:
        one = torch.zeros(1000)
        view = one.view(10, 100)[2:]
        del one
        before.add_(1)
        two = before[:1000] + 1
        assert memory.peak == 8000
        del view
        three = two * 2  # where the first was
        assert memory.peak == 8000
        four = torch.cat([two, three])
    assert memory.peak == 16_000
    del four


def test_the_peak_counts_what_a_gradient_needs():
    weight = torch.randn(100, 100, requires_grad=True)
    with PeakBytes() as memory:
        ((weight @ weight).exp() @ weight).sum().backward()
    held = 100 * 100 * 4
    assert 4 * held <= memory.peak <= 6 * held
