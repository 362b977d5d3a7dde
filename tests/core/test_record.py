import pytest

from expunge.core.record import clustered, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 27.753), (10, 10, 72.247, 100.0), (81, 263, 25.528, 36.621), (15, 148, 6.237, 16.047)],
)
def test_wilson_equals_published_values(successes, n, low, high):
    """Newcombe (1998), Table I, score method without continuity correction, and the closed form at 0 and n."""
    interval = wilson(successes, n)
    assert interval.value == pytest.approx(100 * successes / n)
    assert interval.low == pytest.approx(low, abs=0.02)
    assert interval.high == pytest.approx(high, abs=0.02)


@pytest.mark.parametrize("n", [1, 3, 10, 25, 49, 250])
def test_wilson_holds_its_value_at_both_ends(n):
    assert wilson(0, n).low == 0.0
    assert wilson(n, n).high == 100.0


def test_clusters_that_agree_inside_are_as_uncertain_as_their_number():
    same = [[1.0] * 50, [0.0] * 50, [1.0] * 50, [0.0] * 50]
    interval = clustered(same)
    assert interval.value == 0.5
    assert interval.high - interval.low > 0.7
    assert clustered([[1.0, 0.0] * 25] * 4).high == 0.5


def test_clusters_of_different_size_weigh_by_their_size():
    assert clustered([[1.0], [0.0, 0.0, 0.0]]).value == 0.25
