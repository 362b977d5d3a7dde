import math

import pytest
import torch

from expunge.core.analysis import Study, averaged


def test_an_average_resamples_words_or_single_values_of_one():
    values = [("dog", 0.1), ("dog", 0.3), ("cat", 0.7), ("cat", 0.9)]
    found = averaged("m", values, 2)
    assert found.interval.value == pytest.approx(50)
    half = 12.706 * math.dist([20], [80]) / 2  # Student's t of two words, whose means are 20 and 80
    assert (found.interval.low, found.interval.high) == (pytest.approx(50 - half), pytest.approx(50 + half))
    assert (found.n, found.n_seeds, list(found.labels)) == (4, 2, ["dog", "dog", "cat", "cat"])
    alone = averaged("m", [("dog", v) for v in (0.0, 0.2, 0.4, 0.6)], 4)
    error = 100 * math.sqrt(0.05 / 4)
    assert alone.interval.high - 30 == pytest.approx(1.96 * error, rel=0.25)


def test_a_study_asks_for_words_in_batches_on_equal_seeds(backbone):
    how = {"guidance": 3.0, "steps": 2, "batch": 3, "seed": 7}
    study = Study(targets=["dog"], retain=["ch"], prompt=lambda w: f"a {w}", **how)
    asked = study.queries(["dog", "ch"], 2)
    assert [(q.prompt, q.label, q.seed) for q in asked] == [
        ("a dog", "dog", 7),
        ("a dog", "dog", 8),
        ("a ch", "ch", 7),
        ("a ch", "ch", 8),
    ]
    assert [len(part) for part in study.batches(asked)] == [3, 1]
    expected = torch.cat([backbone.generate(asked[:3]).pixels, backbone.generate(asked[3:]).pixels])
    assert torch.equal(study.images(backbone, asked), expected)
    assert study.states() == {"original": []}
