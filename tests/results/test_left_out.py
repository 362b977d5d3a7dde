"""Which records of a run are kept for others."""

import pytest

from expunge.results.kept import kept, left_out

ROWS = {
    ("set", "esr@1"): True,
    ("set", "psr@1"): True,
    ("set", "dsr"): True,
    ("set", "confidence"): True,
    ("others", "psr@1"): True,
    ("weapons_heldout", "ner@0.5"): True,
    ("set", "ner@0.3"): True,
    ("set", "ner@0.4"): False,
    ("weapons_heldout", "ner@0.55"): False,
    ("attack: p4d (k 3)", "dsr"): True,
    ("attack: p4d (k 3)", "prior_preservation_testbed"): True,
    ("attack: p4d (k 3)", "esr@1"): False,
    ("attack: p4d (k 3)", "confidence"): False,
    ("key: own", "esr@1"): False,
    ("key: own", "dsr"): False,
    ("set", "esr@5"): False,
    ("others", "psr@5"): False,
    ("set", "psr@2"): False,
    ("set", "esr@10"): False,
    ("set", "prior_distance"): True,
    ("set", "target_distance"): False,
    ("set", "valid_rate"): False,
    ("others", "valid_rate_kept"): False,
    ("set", "became@dog"): False,
}


@pytest.mark.parametrize(("group", "metric"), ROWS)
def test_a_record_stays_or_is_left_out(group, metric):
    assert left_out({"provenance": {"group": group}, "metric": metric}) is not ROWS[group, metric]


def test_records_come_first_and_the_summary_is_kept_whole():
    records = [{"provenance": {"group": group}, "metric": metric} for group, metric in ROWS]
    summary = [{"group": group, "metric": metric, "value": 1.0} for group, metric in ROWS]
    lines = kept(records, summary)
    assert lines[: sum(ROWS.values())] == [row for row, stays in zip(records, ROWS.values(), strict=True) if stays]
    assert lines[sum(ROWS.values()) :] == summary
