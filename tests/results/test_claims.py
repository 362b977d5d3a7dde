"""Claims of papers, held against numbers."""

import pytest

from expunge.core.errors import ExpungeError
from expunge.core.record import Interval
from expunge.results import claims, markdown, tables
from expunge.results.claims import Claim

ROW = {"method": "a", "value": 4.0, "low": 1.0, "high": 7.0, "n": 9, "training_seeds": 2}


def claim(**changes):
    return Claim(**{"says": "a erases more", "rows": ("a", "b"), **changes})


@pytest.mark.parametrize(
    ("expected", "low", "high", "found"),
    [
        ("higher", 0.1, 5.0, "holds"),
        ("higher", -5.0, -0.1, "fails"),
        ("higher", -0.1, 5.0, "undecided"),
        ("higher", 0.0, 5.0, "undecided"),
        ("lower", -5.0, -0.1, "holds"),
        ("lower", 0.1, 5.0, "fails"),
        ("equal", -2.9, 3.0, "holds"),
        ("equal", -2.9, 3.1, "undecided"),
        ("equal", 3.1, 8.0, "fails"),
    ],
)
def test_a_claim_is_judged_by_its_interval(expected, low, high, found):
    assert claims.verdict(claim(expected=expected), Interval((low + high) / 2, low, high)) == found


def test_what_is_not_about_erasing_has_the_wider_margin():
    assert claims.verdict(claim(metric="psr@1", expected="equal"), Interval(0, -4.9, 4.9)) == "holds"


def test_claims_are_held_against_the_rows_they_name():
    rows = [
        {**ROW, "method": "a - b", "group": "set", "metric": "esr@1"},
        {**ROW, "group": "key: own", "metric": "esr@1", "value": 30.0, "low": 20.0, "high": 45.0},
    ]
    asked = [
        claim(),
        claim(says="the key recovers", rows=("a",), group="key: own", expected="lower", than=50.0),
        claim(says="nobody looked", metric="psr@5"),
    ]
    found = claims.judged(asked, rows, ["a"])
    assert [r["claim_verdict"] for r in found] == ["holds", "holds", "not measured"]
    assert (found[1]["value"], found[1]["expected"]) == (30.0, "lower than 50")
    lines = markdown.written(tables.claims(found)).splitlines()
    assert lines[2] == "| a erases more | – | 4.0 [1.0, 7.0] | a - b: esr@1 | holds | 2 |"
    assert lines[3].endswith("| 30.0 [20.0, 45.0] | a: esr@1 (key: own) | holds | 2 |")
    assert lines[4].endswith("| – | a - b: psr@5 | not measured | – |")


def test_a_metric_with_settings_is_found_by_its_name_where_it_is_alone():
    one, two = ({**ROW, "group": "analysis: daam", "metric": f"entropy (count {n})"} for n in (8, 9))
    asked = [claim(rows=("a",), group="analysis: daam", metric="entropy", than=0.0)]
    assert [r["claim_verdict"] for r in claims.judged(asked, [one], ["a"])] == ["holds"]
    assert [r["claim_verdict"] for r in claims.judged(asked, [one, two], ["a"])] == ["not measured"], (
        "which of the two?"
    )


def test_what_rests_on_one_training_seed_is_undecided():
    def judged(rows, group="set", seeds=1, trained=("a",), **changes):
        row = {**ROW, "method": " - ".join(rows), "group": group, "metric": "esr@1", "training_seeds": seeds}
        (found,) = claims.judged([claim(rows=tuple(rows), group=group, **changes)], [row], trained)
        return found["claim_verdict"], markdown.written(tables.claims([found])).splitlines()[2].split(" | ")[-1]

    assert judged(["a", "b"]) == ("undecided", "one seed |")
    assert judged(["b", "a"]) == ("undecided", "one seed |"), "whichever of the two is trained"
    assert judged(["a", "b"], expected="equal", within=9.0) == ("undecided", "one seed |")
    assert judged(["a"], than=9.0) == ("undecided", "one seed |"), "nor does it fail"
    assert judged(["a", "b"], seeds=3) == ("holds", "3 |")
    assert judged(["a", "b"], trained=()) == ("holds", "– |"), "a closed form and the original: no training at all"
    assert judged(["b"], group="key: fresh 50", than=0.0) == ("undecided", "one seed |"), "a fresh key is trained"
    assert judged(["b"], group="attack: inversion", than=0.0) == ("undecided", "one seed |"), "an attack's words are"
    assert judged(["b"], group="attack: inversion", seeds=2, than=0.0) == ("holds", "2 |")
    published = "attack: prompt-set (attack_set p.csv)"
    assert judged(["b"], group=published, than=0.0) == ("holds", "– |"), "a file's prompts are not learned"
    assert judged(["a"], group=published, than=0.0) == ("undecided", "one seed |"), "the row is"


def test_equal_says_how_near_where_that_is_not_agreed():
    with pytest.raises(ExpungeError, match="expected how near that is"):
        claim(metric="entropy", expected="equal")
    near = claim(metric="entropy", expected="equal", within=1.0)
    assert claims.verdict(near, Interval(0, -0.9, 0.9)) == "holds"
    assert claims.verdict(near, Interval(0, -1.1, 0.9)) == "undecided"


def test_a_claim_about_no_row_of_the_plan_is_refused():
    with pytest.raises(ExpungeError, match="did you mean 'kpop'"):
        claim(rows=("kpip", "esd")).check(["kpop", "esd"])
    with pytest.raises(ExpungeError, match="names 1 rows: expected two"):
        claim(rows=("a",))
    with pytest.raises(ExpungeError, match="names 2 rows"):
        claim(than=3.0)
