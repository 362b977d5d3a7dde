import pytest
import torch

from expunge.core.record import (
    clustered,
    mean_of,
    nested,
    of_attacks,
    paired_proportions,
    share_of,
    spread,
    wilson,
)


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


def test_a_spread_is_the_standard_deviation_of_all_values():
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 5
    found = spread(values.tolist())
    assert found.value == pytest.approx(values.std().item())
    half = 1.96 * 2 / (2 * 120) ** 0.5  # of a normal distribution's, asymptotically
    assert found.low == pytest.approx(found.value - half, abs=0.12)
    assert found.high == pytest.approx(found.value + half, abs=0.12)
    apart = spread([[1.0] * 50, [0.0] * 50])
    assert (apart.low, apart.high) == (0.0, pytest.approx(0.5, abs=0.01)), "resamples of one cluster alone have none"


def test_clusters_that_agree_inside_are_as_uncertain_as_their_number():
    same = [[1.0] * 50, [0.0] * 50, [1.0] * 50, [0.0] * 50]
    interval = clustered(same)
    assert interval.value == 0.5
    assert interval.high - interval.low > 0.7
    assert clustered([[1.0, 0.0] * 25] * 4).high == 0.5


def test_clusters_of_different_size_weigh_by_their_size():
    assert clustered([[1.0], [0.0, 0.0, 0.0]]).value == 0.25


def test_a_concept_is_as_hard_in_every_run():
    """Ten concepts, five always right: more runs of the same concepts say nothing new about concepts."""
    row = [(f"c{i}", float(i < 5)) for i in range(10)]
    one = nested({0: {"v1": row}})
    many = nested({seed: dict.fromkeys(("v1", "v2", "v3", "v4"), row) for seed in (0, 1)})
    assert many.high - many.low == pytest.approx(one.high - one.low, abs=0.05)
    assert one.high - one.low == pytest.approx(2 * 1.96 * (0.25 / 10) ** 0.5, abs=0.06), "of a mean of ten, from theory"


def test_nested_intervals_cover_training_seeds():
    """Two seeds that disagree by 20 points: the interval of their mean must reach both."""
    runs = {seed: {"v1": [(f"c{i % 5}", float(i < limit)) for i in range(100)]} for seed, limit in ((0, 80), (1, 60))}
    value, low, high = nested(runs)
    assert value == pytest.approx(0.7)
    assert low <= 0.6
    assert high >= 0.8
    agreeing = {0: runs[0], 1: runs[0]}
    assert nested(agreeing).value == pytest.approx(0.8)


def newcombe(cells):
    a, b, c, d = cells
    ones = [1.0] * (a + b) + [0.0] * (c + d)
    others = [1.0] * a + [0.0] * b + [1.0] * c + [0.0] * d
    return paired_proportions(ones, others)


def test_paired_intervals_without_correlation_are_the_unpaired_ones():
    """With cells of equal size the pairs are uncorrelated: Newcombe's interval of two independent proportions."""
    value, low, high = newcombe((10, 10, 10, 10))
    p, lower, upper = wilson(20, 40)
    assert value == 0
    assert high == pytest.approx(((upper - p) ** 2 + (p - lower) ** 2) ** 0.5)
    assert low == pytest.approx(-high)


def test_where_all_pairs_agree_the_interval_has_wilson_s_width():
    assert newcombe((0, 0, 0, 50)) == pytest.approx((0, -wilson(0, 50).high, wilson(0, 50).high))
    assert newcombe((50, 0, 0, 0)) == pytest.approx((0, -wilson(0, 50).high, wilson(0, 50).high))


def test_paired_intervals_hold_the_truth_as_often_as_they_say():
    """Simulated pairs with P(1,1) = .5, P(1,0) = .2, P(0,1) = .1: the difference is 10 points."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(torch.tensor([0.5, 0.2, 0.1, 0.2]), 600 * 80, True, generator=generator).reshape(600, 80)
    held = 0
    for row in drawn.tolist():
        _, low, high = newcombe([row.count(i) for i in range(4)])
        held += low <= 10 <= high
    assert 0.93 <= held / 600 <= 0.975


def test_few_clusters_have_student_s_interval_and_one_concept_counts_its_values():
    three = {0: {"v1": [("a", 0.1), ("b", 0.2), ("c", 0.3)]}}
    found = mean_of(three)
    half = 4.303 * 0.1 / 3**0.5  # t of two degrees of freedom, standard deviation 0.1
    assert (found.low, found.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    one = mean_of({0: {"v1": [("a", v / 10) for v in range(10)]}})
    assert one.value == pytest.approx(0.45)
    assert 0 < one.low < one.value < one.high < 0.9, "not the width of nothing"
    seeds = mean_of({i: {"v1": [("a", v)]} for i, v in enumerate((0.1, 0.2, 0.3))})
    assert (seeds.low, seeds.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    many = {0: {"v1": [(f"{i:02}", float(i)) for i in range(13)]}}
    assert mean_of(many) == nested(many)


def test_shares_over_few_concepts_have_student_s_interval_within_0_and_1():
    shown = {"a": 12, "b": 9, "c": 10, "d": 11, "e": 8}  # of 20 images of each concept
    runs = {0: {"v1": [(c, float(i < k)) for c, k in shown.items() for i in range(20)]}}
    found = share_of(runs)
    half = 2.776 * (0.00625 / 5) ** 0.5  # shares .6 .45 .5 .55 .4: variance .025 / 4; t of 4 degrees of freedom
    assert found == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-3)
    assert found.high - found.low > nested(runs).high - nested(runs).low
    ten = {0: {"v1": [(str(i), i / 9) for i in range(10)]}}
    deviation = (sum((i / 9 - 0.5) ** 2 for i in range(10)) / 9) ** 0.5
    assert share_of(ten) == pytest.approx((0.5, 0.5 - 2.262 * deviation / 10**0.5, 0.5 + 2.262 * deviation / 10**0.5))
    assert nested(ten).high < share_of(ten).high - 0.02, "a bootstrap of ten is too narrow"
    opposed = {0: {"v1": [("a", 1.0), ("b", 0.0)]}}
    assert share_of(opposed) == (0.5, 0.0, 1.0)
    assert share_of({0: {"v1": [("a", 1.0), ("b", -1.0)]}}, -1.0) == (0.0, -1.0, 1.0)


def test_one_concept_s_prompts_and_training_seeds_are_its_clusters():
    """Prompts .2 apart in each of three trainings that agree; then trainings .1 apart in which all prompts agree."""
    prompts = {s: {"": [(f"p{i}", 0.3 + 0.2 * i) for i in range(3)]} for s in range(3)}
    found = mean_of(prompts, prompts=True)
    half = 4.303 * 0.2 / 3**0.5
    assert (found.low, found.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    seeds = {s: {"": [(f"p{i}", 0.4 + 0.1 * s) for i in range(20)]} for s in range(3)}
    found = mean_of(seeds, prompts=True)
    half = 4.303 * 0.1 / 3**0.5
    assert (found.low, found.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def test_an_attack_s_images_count_by_what_its_words_were_learned_for():
    """Two seeds that learn a word for the same three things are three clusters, not six, and never 120 images."""
    won = {(0, "a"): 0.7, (1, "a"): 0.6, (0, "b"): 0.4, (1, "b"): 0.5, (0, "c"): 0.5, (1, "c"): 0.6}
    runs = {
        seed: {"": [(run, float(i < round(v * 20))) for (s, run), v in won.items() if s == seed for i in range(20)]}
        for seed in (0, 1)
    }
    found = of_attacks(runs)
    half = 4.303 * 0.1 / 3**0.5  # t of 2 degrees of freedom; the things' means are 0.65, 0.45 and 0.55
    assert found == pytest.approx((0.55, 0.55 - half, 0.55 + half), abs=1e-3)
    assert wilson(66, 120).low > 100 * found.low + 15  # which 120 independent images would have
    alone = of_attacks({seed: {"": [("a", 1.0), ("a", 0.0)] * 10} for seed in range(3)})
    assert 0.0 < alone.low <= alone.value == 0.5 <= alone.high < 1.0, "one thing: the seeds are the clusters"
    one = {0: {"": [("a", 1.0), ("a", 0.0)]}}
    assert of_attacks(one) == (0.5, 0.0, 1.0), "one run says nothing of others"
    assert of_attacks(one, -1.0) == (0.5, -1.0, 1.0)
    opposed = of_attacks({0: {"": [("a", 1.0), ("b", 0.0)]}})
    assert (opposed.low, opposed.high) == (0.0, 1.0), "no share is beyond these"
    splits = of_attacks({0: {"v1": [("a", 1.0)], "v2": [("a", 0.0)]}})
    assert splits.high - splits.low == 1.0, "two attacks, although of the same word and run"
    alike = {0: {"v1": [("a", 1.0), ("b", 1.0)], "v2": [("a", 0.0), ("b", 0.0)]}}
    assert of_attacks(alike).high - of_attacks(alike).low == 1.0, "four attacks, not two that agree"
