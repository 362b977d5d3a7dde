import json
import math

import pytest
import torch

from expunge.core.analysis import Axis, Figure, Panel, Series, Study, averaged
from expunge.core.errors import ExpungeError


def test_a_figure_is_plain_json_of_the_format():
    line = Series(name="a", x=[1, 10], y=[0.5, 0.25], low=[0.4, 0.2], high=[0.6, 0.3], labels=["p", "q"])
    drawn = Figure(title="T", note="N", kind="lines", x=Axis("k", True), y=Axis("mass"), series=[line])
    assert json.loads(json.dumps(drawn.as_json())) == {
        "format": 1,
        "title": "T",
        "note": "N",
        "kind": "lines",
        "x": {"label": "k", "log": True},
        "y": {"label": "mass", "log": False},
        "series": [
            {"name": "a", "x": [1, 10], "y": [0.5, 0.25], "low": [0.4, 0.2], "high": [0.6, 0.3], "labels": ["p", "q"]}
        ],
    }
    panels = [Panel(title="p", values=[[0.0, 1.0]], image=[[[1, 2, 3], [4, 5, 6]]]), Panel(title="q", values=[[0.5]])]
    assert Figure(title="T", note="N", kind="heatmaps", panels=panels).as_json() == {
        "format": 1,
        "title": "T",
        "note": "N",
        "kind": "heatmaps",
        "panels": [
            {"title": "p", "values": [[0.0, 1.0]], "image": [[[1, 2, 3], [4, 5, 6]]]},
            {"title": "q", "values": [[0.5]]},
        ],
    }


def test_a_figure_with_parts_that_do_not_fit_is_refused():
    with pytest.raises(ExpungeError, match="parts of"):
        Figure(title="T", note="", kind="lines", series=[Series(name="a", x=[1, 2], y=[1])])
    with pytest.raises(ExpungeError, match="expected panels"):
        Figure(title="T", note="", kind="heatmaps", series=[Series(name="a", x=[1], y=[1])])
    with pytest.raises(ExpungeError, match="expected panels"):
        Figure(title="T", note="", kind="bars")


def test_an_average_resamples_words_or_single_values_of_one():
    values = [("dog", 0.1), ("dog", 0.3), ("cat", 0.7), ("cat", 0.9)]
    found = averaged("m", values, 2)
    assert found.interval.value == pytest.approx(50)
    assert (found.interval.low, found.interval.high) == (pytest.approx(20), pytest.approx(80)), (
        "two words: either's mean"
    )
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
