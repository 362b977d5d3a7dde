"""Figures are plain JSON, written and read back alike."""

import json

import pytest

from expunge.core.errors import ExpungeError
from expunge.core.figure import Axis, Figure, Panel, Series

LINE = Series(name="a", x=[1, 10], y=[0.5, None], low=[0.4, None], high=[0.6, None], labels=["p", "q"])
LINES = Figure(title="T", note="N", kind="lines", x=Axis("k", True), y=Axis("mass"), series=[LINE])
PANELS = [Panel(title="p", values=[[0.0, 1.0]], image=[[[1, 2, 3], [4, 5, 6]]]), Panel(title="q", values=[[0.5]])]
HEATMAPS = Figure(title="T", note="N", kind="heatmaps", panels=PANELS)


def test_a_figure_is_plain_json_of_the_format():
    series = {"name": "a", "x": [1, 10], "y": [0.5, None], "low": [0.4, None], "high": [0.6, None]}
    assert json.loads(json.dumps(LINES.as_json())) == {
        "format": 1,
        "title": "T",
        "note": "N",
        "kind": "lines",
        "x": {"label": "k", "log": True},
        "y": {"label": "mass", "log": False},
        "series": [{**series, "labels": ["p", "q"]}],
    }
    assert HEATMAPS.as_json() == {
        "format": 1,
        "title": "T",
        "note": "N",
        "kind": "heatmaps",
        "panels": [
            {"title": "p", "values": [[0.0, 1.0]], "image": [[[1, 2, 3], [4, 5, 6]]]},
            {"title": "q", "values": [[0.5]]},
        ],
    }


@pytest.mark.parametrize("figure", [LINES, HEATMAPS])
def test_a_figure_is_read_back_as_it_was(figure):
    written = json.dumps(figure.as_json())
    assert json.dumps(Figure.from_json(json.loads(written)).as_json()) == written


def test_a_figure_with_parts_that_do_not_fit_is_refused():
    with pytest.raises(ExpungeError, match="series 'a' of figure 'T' has 2 x and 1 y: expected as many"):
        Figure(title="T", note="", kind="lines", series=[Series(name="a", x=[1, 2], y=[1])])
    with pytest.raises(ExpungeError, match="expected panels"):
        Figure(title="T", note="", kind="heatmaps", series=[Series(name="a", x=[1], y=[1])])
    with pytest.raises(ExpungeError, match="expected panels"):
        Figure(title="T", note="", kind="bars")
