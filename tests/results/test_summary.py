"""Rows, differences, verdicts and tables, computed from measurements that nothing was run for."""

import dataclasses

import pytest
import torch

from expunge.core.errors import ExpungeError
from expunge.core.record import Interval, nested, paired_proportions
from expunge.stages import summary as summaries
from expunge.stages.planner import Planned


def measurement(method, label_values, records):
    """A finished measurement of one image job a method, without running any."""
    planned = Planned(job={"room": "measure", "images": method}, method=method, split="v1", group="set")
    values = [[[label, value] for label, value in label_values]] * len(records)
    return summaries.Result(planned, {"records": records, "values": values})


def of_a_set(seed, split, value, low, high):
    record = {"metric": "fid_testbed", "value": value, "low": low, "high": high, "n": 50}
    one = measurement("a", [], [record])
    return one._replace(planned=dataclasses.replace(one.planned, seed=seed, split=split))


def test_nested_intervals_cover_training_seeds():
    """Two seeds that disagree by 20 points: the interval of their mean must reach both."""
    runs = {seed: {"v1": [(f"c{i % 5}", float(i < limit)) for i in range(100)]} for seed, limit in ((0, 80), (1, 60))}
    value, low, high = nested(runs)
    assert value == pytest.approx(0.7)
    assert low <= 0.6
    assert high >= 0.8
    agreeing = {0: runs[0], 1: runs[0]}
    assert nested(agreeing).value == pytest.approx(0.8)


def test_the_table_shows_what_came_back():
    row = {"method": "kpop", "group": "key: own", "metric": "esr@1", "value": 30.0, "low": 20.0, "high": 45.0}
    valid = {**row, "metric": "valid_rate", "value": 98.0}
    assert "| kpop | 70.0 [55.0, 80.0] (98) |" in summaries.table([row, valid])


def test_the_table_says_what_an_erasure_took_in_round_units():
    row = {"method": "kpop", "group": "set", "metric": "esr@1", "value": 99.0, "low": 98.0, "high": 100.0}
    spent = {"erase_equivalents": 6000.0, "erase_seconds": 97.14, "erase_peak_bytes": 150_400_000}
    head, _, kpop, original = summaries.table([{**row, **spent}, {**row, "method": "original"}]).splitlines()
    assert head.endswith("| forwards | seconds | peak MB |")
    assert kpop.endswith("| 6,000 | 97.1 | 150 |")
    assert original.endswith("| – | – | – |")


def test_the_table_says_what_each_method_was_told():
    knows = {
        "targets": ["church"],
        "anchors": [""],
        "templates": ["{}"],
        "retain": [],
        "random_texts": False,
        "oracles": [],
    }
    made, given = ({"church": {"count": 4, "given": g}} for g in (False, True))
    rows = {
        "original": {**knows, "targets": []},
        "plain": knows,
        "few-shot": {**knows, "templates": ["a {}"], "images": made},
        "photos": {**knows, "images": given},
        "pairs": {**knows, "images": {role: {"count": 8, "given": True} for role in ("unsafe", "safe")}},
        "kpop": {
            **knows,
            "anchors": ["a picture"],
            "retain": ["dog", "cat"],
            "random_texts": True,
            "oracles": ["testbed"],
        },
    }
    results = [measurement(name, [("church", 1.0)], [{"metric": "esr@1", "knowledge": k}]) for name, k in rows.items()]
    assert summaries._told(results) == {
        "plain": "",
        "few-shot": "phrases, images made",
        "photos": "images given",
        "pairs": "8 pairs given",
        "kpop": "anchor, 2 kept, random texts, oracle",
    }
    row = {"group": "set", "metric": "esr@1", "value": 99.0, "low": 98.0, "high": 100.0}
    head, _, kpop, plain = summaries.table(
        [{**row, "method": "kpop", "told": "anchor"}, {**row, "method": "plain", "told": ""}]
    ).splitlines()
    assert head.endswith("| told beside the name |")
    assert (kpop.endswith("| anchor |"), plain.endswith("| – |")) == (True, True)


def test_equal_quality_needs_a_thousand_images_two_seeds_and_a_narrow_interval():
    equal, wide = Interval(0.5, -2.0, 2.5), Interval(0.5, -4.0, 2.5)
    assert summaries._verdict(equal, "esr@1", 1000, 2) == {"verdict": "undecided", "equal_quality": True}
    assert summaries._verdict(wide, "esr@1", 1000, 2)["equal_quality"] is False
    assert summaries._verdict(wide, "psr@1", 1000, 2)["equal_quality"] is True
    assert summaries._verdict(equal, "esr@1", 999, 2)["equal_quality"] is None
    assert summaries._verdict(equal, "esr@1", 1000, 1)["equal_quality"] is None
    assert summaries._verdict(Interval(2.0, 1.0, 3.0), "esr@1", 10, 1)["verdict"] == "higher"
    assert summaries._verdict(Interval(-2.0, -3.0, -1.0), "esr@1", 10, 1)["verdict"] == "lower"


def test_images_that_two_splits_share_count_once_in_a_summary():
    one = measurement("a", [("dog", 1.0), ("cat", 0.0)], [{"metric": "psr@1"}])
    shared = one._replace(planned=dataclasses.replace(one.planned, split="v2"))
    (row,) = summaries._summary([one, shared], {})
    assert (row["n"], row["splits"]) == (2, 2)
    other = one._replace(planned=dataclasses.replace(one.planned, split="v2", job={"room": "measure", "images": "b"}))
    (row,) = summaries._summary([one, other], {})
    assert row["n"] == 4


def test_a_number_of_images_together_is_a_mean_over_runs_with_the_hull_of_their_intervals():
    runs = [of_a_set(0, "v1", 10.0, 8.0, 12.0), of_a_set(1, "v1", 14.0, 11.0, 17.0), of_a_set(1, "v2", 9.0, 8.5, 9.5)]
    (row,) = summaries._summary(runs, {"a": {"told": "anchor"}})
    assert (row["value"], row["low"], row["high"]) == (11.0, 8.0, 17.0)
    assert (row["n"], row["training_seeds"], row["splits"], row["told"]) == (150, 2, 2, "anchor")
    assert "11.0 [8.0, 17.0]" in summaries.table([row])
    other = runs[0]._replace(planned=dataclasses.replace(runs[0].planned, method="b"))
    assert summaries._differences([("a", "b")], [*runs, other]) == [], "there are no images to pair"


def test_the_table_shows_what_further_sets_are_measured_by():
    shown = {"others": ("psr@1", "fid_testbed", "prior_distance"), "weapons": ("esr@1", "ner@0.5", "dsr", "psr@5")}
    hidden = {"others": ("psr@5", "valid_rate"), "weapons": ("valid_rate", "ner@0.3"), "key: own": ("esr@1", "dsr")}
    for wanted, groups in ((True, shown), (False, hidden)):
        for group, metrics in groups.items():
            assert [summaries.tabled({"group": group, "metric": m}) for m in metrics] == [wanted] * len(metrics)


def test_recoveries_are_paired_too():
    results = []
    for name, shown in (("a", [1.0, 1.0, 1.0, 0.0]), ("b", [0.0, 0.0, 1.0, 0.0])):
        one = measurement(name, [("dog", 1 - value) for value in shown], [{"metric": "esr@1"}])
        results.append(one._replace(planned=dataclasses.replace(one.planned, group="key: own")))
    (row,) = summaries._differences([("a", "b")], results)
    assert (row["group"], row["metric"], row["value"]) == ("key: own", "recovery", 50.0)
    assert "key: own recovery" in summaries.table([row])


def test_differences_are_paired_image_by_image():
    record = {"metric": "psr@1"}
    ones = [("dog", 1.0), ("dog", 1.0), ("cat", 1.0), ("cat", 0.0)]
    others = [("dog", 1.0), ("dog", 0.0), ("cat", 0.0), ("cat", 0.0)]
    results = [measurement("a", ones, [record]), measurement("b", others, [record])]
    (row,) = summaries._differences([("a", "b")], results)
    assert (row["method"], row["value"], row["n"]) == ("a - b", 50.0, 4)
    assert row["low"] <= paired_proportions([v for _, v in ones], [v for _, v in others]).low + 1e-3
    with pytest.raises(ExpungeError, match="other images on split v1"):
        summaries._differences([("a", "b")], [results[0], measurement("b", list(reversed(others)), [record])])


def test_what_targets_became_is_a_share_of_all_their_images():
    made = {"method": "uce", "group": "set", "variant": "", "training_seed": 0}
    lines = [
        {"metric": f"became@{label}", "value": value, "n": 50, "provenance": {**made, "split": split}}
        for split, label, value in (("v1", "key", 40.0), ("v1", "cat", 10.0), ("v2", "key", 20.0))
    ]
    (row,) = summaries.became(lines)
    assert row["n"] == 100
    assert row["shares"] == {"key": 30.0, "cat": 5.0}


def test_a_difference_under_attack_counts_runs_and_not_their_images():
    def attacked(method, shares):
        for run, share in enumerate(shares):
            one = measurement(method, [("church", float(i < 20 * share)) for i in range(20)], [{"metric": "dsr"}])
            planned = dataclasses.replace(one.planned, group="attack: x", run=run)
            yield one._replace(planned=planned)

    (row,) = summaries._differences([("a", "b")], [*attacked("a", (1.0, 0.5, 0.9)), *attacked("b", (0.0, 0.4, 0.2))])
    points = torch.tensor([100.0, 10.0, 70.0], dtype=torch.float64)
    half = 4.303 * float(points.std()) / 3**0.5
    assert row["value"] == pytest.approx(60)
    assert (row["low"], row["high"]) == (pytest.approx(max(-100, 60 - half), abs=1e-3), 100), "Student's, of three runs"
    assert row["verdict"] == "undecided"
