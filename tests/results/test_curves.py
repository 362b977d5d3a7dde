"""Curves of a plan's numbers."""

import pytest

from expunge.core.errors import ExpungeError
from expunge.report.figures import svg
from expunge.results.curves import Curve, figure

ROWS = [
    {"method": f"lambda={v}", "group": g, "metric": "esr@1", "value": a, "low": a - 2, "high": a + 1}
    for v, g, a in ((1, "set", 90.0), (10, "set", 60.0), (1, "key: own", 40.0), (10, "key: own", 20.0))
]
LINES = (
    {"name": "erased", "rows": ["lambda=1", "lambda=10"], "metrics": ["esr@1"]},
    {
        "name": "back",
        "rows": ["lambda=1", "lambda=10"],
        "metrics": ["esr@1"],
        "group": "key: own",
        "turned": True,
    },
    {"name": "by rank", "rows": ["lambda=1"], "metrics": ["esr@1", "esr@5"]},
)


def curve(**changes):
    return Curve(**{"title": "t", "x": (1.0, 10.0), "x_label": "lambda", "log": True, "lines": LINES, **changes})


def test_numbers_of_a_summary_become_lines():
    claim = {**ROWS[0], "claim": "x", "value": 3.0}
    erased, back, ranks = figure(curve(), [*ROWS, claim]).as_json()["series"]
    assert (erased["y"], erased["low"], erased["high"]) == ([90.0, 60.0], [88.0, 58.0], [91.0, 61.0])
    assert (back["y"], back["low"], back["high"]) == ([60.0, 80.0], [59.0, 79.0], [62.0, 82.0])
    assert ranks["y"] == [90.0, None], "what was not measured is a gap"


def test_it_can_be_drawn():
    assert "lambda" in svg(figure(curve(), ROWS))


def test_lines_that_do_not_fit_are_refused():
    with pytest.raises(ExpungeError, match="has 2 rows: expected one, or 3"):
        curve(x=(1.0, 2.0, 3.0))
    with pytest.raises(ExpungeError, match="did you mean 'lambda=1'"):
        curve().check(["lambda=1", "lambda"])


def test_a_figure_may_set_one_number_against_another():
    line = {"name": "curve", "rows": ["lambda=1", "lambda=5", "lambda=10"], "metrics": ["esr@1"], "group": "key: own"}
    (drawn,) = figure(curve(x=(), x_metric="esr@1", lines=(line,)), ROWS).as_json()["series"]
    assert (drawn["x"], drawn["y"]) == ([90.0, 60.0], [40.0, 20.0]), "a row that was not measured is left out"
    assert (drawn["low"], drawn["labels"]) == ([38.0, 18.0], ["lambda=1", "lambda=10"])
    unmeasured = {**line, "name": "none", "rows": ["lambda=5"]}
    whole = figure(curve(x=(), x_metric="esr@1", lines=(line, unmeasured)), ROWS)
    assert [s.name for s in whole.series] == ["curve"], "a line without a point is left out"
    assert "lambda=10" in svg(whole)
    for bad in ({"x_metric": "esr@1"}, {"x": ()}):
        with pytest.raises(ExpungeError, match="expected one"):
            curve(**bad)


def test_places_may_have_names_and_each_images_of_its_own():
    """Bars: what is asked for by name, and what a key brings back; a place that was not measured has none."""
    line = {"name": "1", "rows": ["lambda=1"], "metrics": ["esr@1"], "groups": ["set", "key: own", "attack: p4d"]}
    drawn = figure(curve(x=(), x_names=("by name", "own key", "P4D"), log=False, lines=(line,)), ROWS)
    (bars,) = drawn.as_json()["series"]
    assert (drawn.kind, bars["x"], bars["y"]) == ("bars", ["by name", "own key", "P4D"], [90.0, 40.0, None])
    assert "own key" in svg(drawn)
    with pytest.raises(ExpungeError, match="has 2 groups: expected one, or 3 as there are places on the x axis"):
        curve(x=(), x_names=("a", "b", "c"), lines=({**line, "groups": ["set", "others"]},))
    with pytest.raises(ExpungeError, match=r"with x \[1\.0, 10\.0\], x_names \['a'\] and x_metric None: expected one"):
        curve(x_names=("a",))
