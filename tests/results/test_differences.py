"""Paired differences, and what they show."""

from dataclasses import replace

import pytest
import torch

from expunge.core.errors import ExpungeError
from expunge.core.record import Interval, paired_proportions
from expunge.results import markdown
from expunge.results.claims import Claim
from expunge.results.claims import judged as judged_claims
from expunge.results.differences import differences, gains, verdict
from results.finished import finished


def test_equal_quality_needs_a_thousand_images_two_seeds_and_a_narrow_interval():
    equal, wide = Interval(0.5, -2.0, 2.5), Interval(0.5, -4.0, 2.5)
    assert verdict(equal, "esr@1", 1000, 2) == {"verdict": "undecided", "equal_quality": True}
    assert verdict(wide, "esr@1", 1000, 2)["equal_quality"] is False
    assert verdict(wide, "psr@1", 1000, 2)["equal_quality"] is True
    assert verdict(equal, "esr@1", 999, 2)["equal_quality"] is None
    assert verdict(equal, "esr@1", 1000, 1)["equal_quality"] is None
    assert verdict(equal, "recovery", 1000, 2)["equal_quality"] is None
    assert verdict(Interval(2.0, 1.0, 3.0), "esr@1", 10, 1)["verdict"] == "higher"
    assert verdict(Interval(-2.0, -3.0, -1.0), "esr@1", 10, 1)["verdict"] == "lower"


def test_differences_are_paired_image_by_image():
    ones = [("dog", 1.0), ("dog", 1.0), ("cat", 1.0), ("cat", 0.0)]
    others = [("dog", 1.0), ("dog", 0.0), ("cat", 0.0), ("cat", 0.0)]
    one, other = (finished(name, values, {"metric": "psr@1"}) for name, values in (("a", ones), ("b", others)))
    (row,) = differences([("a", "b")], [one, other])
    assert (row["method"], row["value"], row["n"]) == ("a - b", 50.0, 4)
    assert row["low"] <= paired_proportions([v for _, v in ones], [v for _, v in others]).low + 1e-3
    with pytest.raises(ExpungeError, match="other images on split v1"):
        differences([("a", "b")], [one, replace(other, values=[list(reversed(other.values[0]))])])


def test_a_row_without_training_seeds_stands_for_every_one():
    trained = [finished("a", [("dog", value)], {"metric": "psr@1"}, seed=seed) for seed, value in ((0, 1.0), (1, 0.0))]
    (row,) = differences([("a", "original")], [*trained, finished("original", [("dog", 1.0)], {"metric": "psr@1"})])
    assert (row["value"], row["training_seeds"]) == (-50.0, 2)


def test_images_that_two_splits_share_in_both_rows_are_paired_once():
    """Two rows that no split changes, and one that each split erases otherwise: four images, or four of each."""
    shown = [("dog", 1.0), ("dog", 0.0), ("cat", 1.0), ("cat", 1.0)]

    def measured(method, by_split):
        return [
            finished(method, shown, {"metric": "psr@1"}, split=split, images=images, group="others")
            for split, images in by_split.items()
        ]

    alike = [*measured("original", {"v1": "o", "v2": "o"}), *measured("float8", {"v1": "f", "v2": "f"})]
    erased = measured("uce", {"v1": "u1", "v2": "u2"})
    once, each = differences([("float8", "original"), ("uce", "original")], [*alike, *erased])
    assert (once["n"], each["n"]) == (4, 8)
    (one_split,) = differences([("float8", "original")], [one for one in alike if one.split == "v1"])
    assert (once["value"], once["low"], once["high"]) == (one_split["value"], one_split["low"], one_split["high"])


def test_what_only_images_together_have_is_not_paired():
    record = {"metric": "fid_testbed", "value": 1.0, "low": 0.0, "high": 2.0, "n": 50}
    assert differences([("a", "b")], [finished("a", [], record), finished("b", [], record)]) == []


def test_recoveries_are_paired_too():
    both = [("a", [1.0, 1.0, 1.0, 0.0]), ("b", [0.0, 0.0, 1.0, 0.0])]
    measured = [
        finished(name, [("dog", 1 - back) for back in shown], {"metric": "esr@1"}, group=group)
        for name, shown in both
        for group in ("key: own", "key: random")
    ]
    row, gain = differences([("a", "b")], measured)
    assert (row["group"], row["metric"], row["value"]) == ("key: own", "recovery", 50.0)
    assert (gain["group"], gain["metric"], gain["value"]) == ("key: own - random", "recovery", 0.0)
    assert "key: own recovery" in markdown.text([row])


def test_a_difference_under_attack_counts_runs_and_not_their_images():
    def attacked(method, shares):
        for run, share in enumerate(shares):
            values = [("church", float(i < 20 * share)) for i in range(20)]
            yield finished(method, values, {"metric": "dsr"}, group="attack: x", run=run)

    (row,) = differences([("a", "b")], [*attacked("a", (1.0, 0.5, 0.9)), *attacked("b", (0.0, 0.4, 0.2))])
    points = torch.tensor([100.0, 10.0, 70.0], dtype=torch.float64)
    half = 4.303 * float(points.std()) / 3**0.5
    assert row["value"] == pytest.approx(60)
    assert (row["low"], row["high"]) == (pytest.approx(max(-100, 60 - half), abs=1e-3), 100), "Student's, of three runs"
    assert row["verdict"] == "undecided"


def keyed(method, own, random):
    for control, back in (("own", own), ("random", random)):
        values = [("dog" if i < 2 else "cat", 1.0 - b) for i, b in enumerate(back)]
        yield finished(method, values, {"metric": "esr@1"}, group=f"key: {control}")


def test_what_a_key_brings_back_more_than_a_random_one_is_paired_image_by_image():
    own, random = [1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    (row,) = gains([*keyed("a", own, random)])
    assert (row["method"], row["group"], row["metric"]) == ("a", "key: own - random", "recovery")
    assert (row["value"], row["n"], row["unit"]) == (50.0, 4, "points")
    assert row["low"] <= paired_proportions(own, random).low + 1e-3
    assert row["high"] >= paired_proportions(own, random).high - 1e-3
    assert "key: own - random recovery" in markdown.text([row])
    claim = Claim(says="the key is needed", rows=("a",), group="key: own - random", metric="recovery", than=0.0)
    (judged,) = judged_claims([claim], [row], ())
    assert (judged["value"], judged["claim_verdict"]) == (50.0, "undecided")
    assert gains([*keyed("a", own, random)][:1]) == [], "nothing without a random one"


def test_two_methods_gains_are_compared_too():
    """a: +1, 0, +1, 0; b: 0, 0, +1, -1. The first less the second: +1, 0, 0, +1."""
    measured = [*keyed("a", [1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0])]
    measured += keyed("b", [0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0])
    found = {row["group"]: row["value"] for row in differences([("a", "b")], measured)}
    assert found == {"key: own": 25.0, "key: own - random": 50.0}
