"""Tables: what stands in which cell, whatever they are written as."""

import pytest

from expunge.results import markdown, tables
from expunge.results.group import Group
from expunge.results.meanings import glossary, is_headline, margin, meaning
from expunge.results.recoveries import injected

ROW = {"method": "kpop", "group": "set", "metric": "esr@1", "value": 99.0, "low": 98.0, "high": 100.0}
BACK = {**ROW, "group": "key: own", "value": 30.0, "low": 20.0, "high": 45.0}


def test_the_table_shows_what_came_back():
    valid = {**BACK, "metric": "valid_rate", "value": 98.0}
    assert "| kpop | 70.0 [55.0, 80.0] (98) |" in markdown.text([BACK, valid])
    assert "| kpop | 70.0 [55.0, 80.0] |" in markdown.text([BACK]), "nobody counted pictures"


def test_two_judges_recoveries_are_two_columns():
    other = {**BACK, "metric": "esr@1 (judge b)", "value": 10.0, "low": 5.0, "high": 15.0}
    valid = {**BACK, "metric": "valid_rate (judge b)", "value": 50.0}
    table = tables.recoveries([BACK, other, valid, {**BACK, "metric": "esr@10"}])
    assert list(table.head) == ["method", "own", "own (judge b)"]
    assert [(cell.value, cell.valid) for cell in table.rows[0][1:]] == [(70.0, None), (90.0, 50.0)]
    assert list(tables.recoveries([other]).head) == ["method", "own"], "one judge needs no name"


def test_without_a_key_a_method_that_has_one_is_shown_by_its_own_images():
    bare = tables.recoveries([ROW, {**ROW, "method": "uce"}, BACK], bare=True)
    assert (list(bare.head), len(bare.rows)) == (["method", "no key", "own"], 1)
    assert bare.rows[0][1].value == 1.0
    measured = {**BACK, "group": "key: none", "value": 90.0}
    assert tables.recoveries([ROW, measured, BACK], bare=True).rows[0][1].value == 10.0, "not twice"


def test_the_table_says_what_an_erasure_took_in_round_units():
    spent = {"erase_equivalents": 6000.0, "erase_seconds": 97.14, "erase_peak_bytes": 150_400_000}
    text = markdown.text([{**ROW, **spent}, {**ROW, "method": "original"}])
    head, _, kpop, original = text.splitlines()
    assert head.endswith("| forwards | seconds | peak MB |")
    assert kpop.endswith("| 6,000 | 97.1 | 150 |")
    assert original.endswith("| – | – | – |")


def test_the_table_says_what_each_method_was_told():
    rows = [{**ROW, "told": "anchor"}, {**ROW, "method": "plain", "told": ""}]
    head, _, kpop, plain = markdown.text(rows).splitlines()
    assert head.endswith("| told beside the name |")
    assert (kpop.endswith("| anchor |"), plain.endswith("| – |")) == (True, True)


def test_the_table_shows_what_further_sets_are_measured_by():
    shown = {"others": ("psr@1", "fid_testbed", "prior_distance"), "weapons": ("esr@1", "ner@0.5", "dsr", "psr@5")}
    shown |= {"attack: x": ("valid_rate", "dsr"), "after 2": ("esr@1", "psr@1"), "key: own": ("recovery",)}
    hidden = {"others": ("psr@5", "valid_rate"), "weapons": ("valid_rate", "ner@0.3"), "key: own": ("esr@1", "dsr")}
    hidden |= {"after 2": ("esr@5", "dsr"), "split: v1": ("esr@1", "fid_testbed"), "set": ("detections",)}
    for wanted, groups in ((True, shown), (False, hidden)):
        for group, metrics in groups.items():
            found = [is_headline(metric, Group.parse(group)) for metric in metrics]
            assert found == [wanted] * len(metrics), group


def test_a_difference_is_written_with_its_verdict():
    row = {
        **ROW,
        "method": "a - b",
        "value": -4.0,
        "low": -7.0,
        "high": -1.0,
        "verdict": "lower",
        "equal_quality": True,
    }
    (cells,) = tables.differences([row]).rows
    assert (cells[1].written(signed=True), cells[1].equal) == ("-4.0 [-7.0, -1.0]", True)
    assert "| a - b | -4.0 [-7.0, -1.0] lower |" in markdown.text([row])


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("key: none", "no key"),
        ("key: random", "random"),
        ("key: neutral", "own, with a neutral text"),
        ("key: other seed", "that of another seed"),
        ("key: fresh 300", "fresh 300 updates"),
        ("key: own after 2", "own after 2"),
        ("key: esd", "own, in the model of esd"),
    ],
)
def test_what_a_recovery_injects_in_words(group, words):
    assert injected(Group.parse(group)) == words


def test_meanings_and_margins_are_of_a_metric_whatever_its_settings():
    assert meaning("esr@5 (judge b)") == meaning("esr@1") != ""
    assert meaning("new_metric@1") == ""
    assert (margin("esr@1"), margin("psr@5 (ks [5])"), margin("recovery"), margin("dsr")) == (3.0, 5.0, 5.0, None)
    assert list(glossary(["psr@1", "valid_rate_kept", "esr@1", "esr@5", "new"])) == ["psr", "valid_rate_kept", "esr"]
