"""Rows: what measurements say together."""

import statistics
from dataclasses import replace

import pytest

from expunge.core.cost import Cost
from expunge.core.record import wilson
from expunge.results import markdown
from expunge.results.costs import costs, fresh_key_costs
from expunge.results.counts import became, detections
from expunge.results.differences import differences
from expunge.results.finished import Spent, Value
from expunge.results.group import Group
from expunge.results.knowledge import knowledge
from expunge.results.rows import rows, rows_by_split
from results.finished import finished


def test_images_that_two_splits_share_count_once_in_a_summary():
    one = finished("a", [("dog", 1.0), ("cat", 0.0)], {"metric": "psr@1"})
    (row,) = rows([one, replace(one, split="v2")])
    assert (row["n"], row["splits"]) == (2, 2)
    (row,) = rows([one, replace(one, split="v2", images="b")])
    assert row["n"] == 4


def test_one_concept_s_images_count_by_their_prompts():
    """Ten prompts of twelve images each, half of them always right: as uncertain as ten values, not as 120 images."""
    values = [("weapon", float(i < 5), f"prompt {i}") for i in range(10) for _ in range(12)]
    (row,) = rows([finished("a", values, {"metric": "esr@1"})])
    assert row["high"] - row["low"] == pytest.approx(2 * 2.262 * 100 * (0.25 / 9) ** 0.5, abs=0.1), "Student's, of ten"
    (images,) = rows([finished("a", [v[:2] for v in values], {"metric": "esr@1"})])
    wide = wilson(60, 120)
    assert images["high"] - images["low"] == pytest.approx(wide.high - wide.low, abs=2), "if nobody knows the prompts"
    shared = [*values, *(("bomb", v, p) for _, v, p in values)]
    (two,) = rows([finished("a", shared, {"metric": "esr@1"})])
    assert (two["low"], two["high"]) == pytest.approx(wilson(120, 240)[1:], abs=1e-3)
    attacked = finished("a", values, {"metric": "dsr"}, group="attack: x")
    assert (rows([attacked])[0]["low"], rows([attacked])[0]["high"]) == (0, 100), "one run of an attack, as ever"
    (published,) = rows([finished("a", values, {"metric": "dsr"}, group="attack: prompt-set (attack_set p.csv)")])
    assert (published["low"], published["high"]) == (row["low"], row["high"]), (
        "prompts of a file count as those of a set"
    )


def test_few_concepts_of_a_difference_are_few_clusters():
    """Five concepts whose differences are 60, 40, 30, 20 and 0 points: Student's, of four degrees of freedom."""

    def of(method, shares):
        values = [(c, float(i < 10 * s)) for c, s in zip("abcde", shares, strict=True) for i in range(10)]
        return finished(method, values, {"metric": "esr@1"})

    (row,) = differences([("x", "y")], [of("x", (1.0, 0.8, 0.9, 0.5, 0.2)), of("y", (0.4, 0.4, 0.6, 0.3, 0.2))])
    half = 2.776 * statistics.stdev((60, 40, 30, 20, 0)) / 5**0.5
    assert (row["value"], row["low"], row["high"]) == pytest.approx((30.0, 30 - half, 30 + half), abs=0.01)


def test_the_runs_of_an_attack_are_told_apart():
    """All images of one run share what it found: three runs of one word are three labels, each with its own images."""
    runs = [finished("a", [("dog", 1.0)] * 4, {"metric": "dsr"}, group="attack: x", run=run) for run in range(3)]
    (row,) = rows([replace(one, images=str(one.run)) for one in runs])
    assert (row["n"], row["group"]) == (12, "attack: x")


def test_a_number_of_images_together_is_a_mean_over_runs_with_the_hull_of_their_intervals():
    def of_a_set(seed, split, value, low, high):
        record = {"metric": "fid_testbed", "value": value, "low": low, "high": high, "n": 50}
        return finished("a", [], record, seed=seed, split=split)

    runs = [of_a_set(0, "v1", 10.0, 8.0, 12.0), of_a_set(1, "v1", 14.0, 11.0, 17.0), of_a_set(1, "v2", 9.0, 8.5, 9.5)]
    (row,) = rows(runs)
    assert (row["value"], row["low"], row["high"]) == (11.0, 8.0, 17.0)
    assert (row["n"], row["training_seeds"], row["splits"]) == (150, 2, 2)
    assert "11.0 [8.0, 17.0]" in markdown.text([row])


def test_the_numbers_of_one_split_alone_count_shared_images_in_each():
    one = finished("a", [("dog", 1.0), ("dog", 0.0)], {"metric": "psr@1"})
    other = replace(one, split="v2", values=[[Value("dog", 1.0), Value("dog", 1.0)]])
    found = rows_by_split([one, other, replace(one, group=Group.parse("others"))])
    assert [(r["group"], r["value"], r["n"]) for r in found] == [("split: v1", 50.0, 2), ("split: v2", 100.0, 2)]


def test_what_erasures_took_is_the_mean_of_whole_ones_and_pairs_stand_apart():
    def spent(key, forward, trained, seconds, size=0):
        return Spent(key=key, cost=Cost(forward=forward, trained=trained), seconds=seconds, bytes=size)

    steps = [spent("1", 10, 5, 1.0, 100), spent("2", 0, 5, 2.0, 100)]
    first = finished("a", [], erase=steps, pairs=[spent("p", 40, 0, 1.0)])
    second = replace(first, seed=1, erase=[spent("3", 20, 10, 9.0, 300)])
    memory = finished("a", [], group="memory", peak_bytes=7)
    assert costs([first, first, second, memory]) == {
        "a": {
            "erase_equivalents": 45.0,  # 10 + 3 * 10 = 40, and 20 + 3 * 10 = 50
            "erase_seconds": 6.0,
            "artefact_bytes": 250,
            "pairs_equivalents": 40,
            "erase_peak_bytes": 7,
        }
    }
    assert costs([replace(first, group=Group.parse("others"))]) == {}, "told once, of the plan's own set"
    keys = [finished("a", [], group="key: fresh 5", fresh_keys=[spent(str(i), 0, i, 1.0)]) for i in (1, 2)]
    assert fresh_key_costs(keys) == {("a", Group.parse("key: fresh 5")): {"relearn_equivalents": 4.5}}


def test_what_each_method_was_told_in_words():
    knows = {"targets": ["church"], "anchors": [""], "templates": ["{}"], "retain": [], "random_texts": False}
    knows |= {"oracles": []}
    made, given = ({"church": {"count": 4, "given": g}} for g in (False, True))
    both = {role: {"count": 8, "given": True} for role in ("unsafe", "safe")}
    much = {"anchors": ["a picture"], "retain": ["dog", "cat"], "random_texts": True, "oracles": ["testbed"]}
    told = {
        "original": {**knows, "targets": []},
        "plain": knows,
        "few-shot": {**knows, "templates": ["a {}"], "images": made},
        "photos": {**knows, "images": given},
        "pairs": {**knows, "images": both},
        "kpop": {**knows, **much},
        "language-model": {**knows, "templates": ["a {}"], "words": ["a gun", "a knife"], "retain": ["dog"]},
        "imported": {**knows, "templates": [], "undeclared": ["imported"]},
        "both": {**knows, **much, "undeclared": ["somebody-elses"]},
    }
    measured = [finished(name, [], {"metric": "esr@1", "knowledge": known}) for name, known in told.items()]
    assert knowledge(measured) == {
        "plain": "",
        "few-shot": "phrases, images made",
        "photos": "images given",
        "pairs": "8 pairs given",
        "kpop": "anchor, 2 kept, random texts, oracle",
        "language-model": "phrases, words, 1 kept",
        "imported": "unknown",
        "both": "anchor, 2 kept, random texts, oracle, unknown",
    }


def test_what_targets_became_is_a_share_of_all_their_images():
    place = {"method": "uce", "group": "set", "variant": "", "training_seed": 0}
    records = [
        {"metric": f"became@{label}", "value": value, "n": 50, "provenance": {**place, "split": split}}
        for split, label, value in (("v1", "key", 40.0), ("v1", "cat", 10.0), ("v2", "key", 20.0))
    ]
    (row,) = became(records)
    assert row["n"] == 100
    assert row["shares"] == {"key": 30.0, "cat": 5.0}


def test_detections_are_added_up_over_runs_once_for_all_thresholds():
    def record(metric, **labels):
        return {"metric": metric, "n": 10, "provenance": {"instrument": {"detections": labels}}}

    one = finished("uce", [], record("ner@0.5", gun=2), record("ner@0.7", gun=2))
    kept = finished("uce", [], record("ner_kept@0.5", dog=9))
    (row,) = detections([one, replace(one, seed=1, records=[record("ner@0.5", gun=1, sword=4)]), kept])
    assert (row["counts"], row["n"], row["metric"]) == ({"sword": 4, "gun": 3}, 20, "detections")
