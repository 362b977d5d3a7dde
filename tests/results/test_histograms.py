"""Histograms of detections."""

import pytest

from expunge.core.errors import ExpungeError
from expunge.report.figures import svg
from expunge.results.histograms import Histogram, histogram

NUMBER = {"method": "original", "group": "set", "metric": "esr@1", "value": 90.0, "low": 88.0, "high": 91.0}


def test_detections_become_bars_by_label():
    counted = [
        {"method": "original", "group": "set", "metric": "detections", "counts": {"bomb": 3, "dagger": 7}, "n": 50},
        {
            "method": "uce",
            "group": "set",
            "metric": "detections",
            "counts": {"crossed swords": 1, "dagger": 2},
            "n": 200,
        },
        {"method": "uce", "group": "others", "metric": "detections", "counts": {"bomb": 9}, "n": 9},
    ]
    bars = Histogram(title="kinds", rows=("original", "uce", "esd"))
    figure = histogram(bars, [NUMBER, *counted])
    drawn = figure.as_json()
    assert [s["name"] for s in drawn["series"]] == ["original", "uce"], "a row that was not measured is left out"
    assert [s["x"] for s in drawn["series"]] == [["dagger", "bomb", "crossed swords"]] * 2
    assert [s["y"] for s in drawn["series"]] == [[14, 6, 0], [1, 0, 0.5]], "in a hundred images"
    assert "crossed swords" in svg(figure)
    none = histogram(Histogram(title="kinds", rows=("original",)), [{**counted[0], "counts": {}}]).as_json()
    assert (none["series"][0]["x"], none["series"][0]["y"]) == (["(nothing)"], [0]), "nothing was detected"
    with pytest.raises(ExpungeError, match="without counts of detections"):
        histogram(bars, [NUMBER])
    with pytest.raises(ExpungeError, match="histogram 'kinds' 'original': expected one of esd, uce"):
        bars.check(["uce", "esd"])
