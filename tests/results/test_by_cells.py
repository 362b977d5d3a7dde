"""Differences of rows by split and training seed, from committed records."""

import json

import by_cells
import pytest
from scipy.stats import ttest_rel

FIRST = {("v1", 0): 57.0, ("v1", 1): 54.0, ("v2", 0): 42.0, ("v2", 1): 41.0}
SECOND = {("v1", 0): 38.0, ("v1", 1): 44.0, ("v2", 0): 21.0, ("v2", 1): 15.0, ("v3", 0): 99.0}


@pytest.fixture(autouse=True)
def plans(tmp_path, monkeypatch):
    """A plan's records, those of another group and metric among them, and its summary."""
    rows = [{"method": "a", "metric": "psr@1", "group": "others", "value": 1.0}]
    for method, values in (("a", FIRST), ("b", SECOND)):
        for (split, seed), value in values.items():
            for group, metric, shown in (("others", "psr@1", value), ("set", "psr@1", 0.0), ("others", "psr@5", 0.0)):
                by = {"method": method, "group": group, "split": split, "training_seed": seed}
                rows.append({"metric": metric, "value": shown, "provenance": by})
    (tmp_path / "plan.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(by_cells, "HERE", tmp_path)


def test_the_interval_is_student_s_over_cells_that_both_have():
    found = by_cells.difference("plan", "a", "b", "psr@1", "others")
    expected = ttest_rel([FIRST[c] for c in FIRST], [SECOND[c] for c in FIRST]).confidence_interval(0.95)
    assert (found["value"], found["cells"]) == (19.0, 4)
    assert (found["low"], found["high"]) == (round(expected.low, 2), round(expected.high, 2))


def test_what_cannot_be_compared_is_one_line():
    with pytest.raises(SystemExit, match="plan: no record of 'c', psr@1, others"):
        by_cells.difference("plan", "a", "c", "psr@1", "others")
    with pytest.raises(SystemExit, match="plan: no record of 'a', esr@1, others"):
        by_cells.difference("plan", "a", "b", "esr@1", "others")
