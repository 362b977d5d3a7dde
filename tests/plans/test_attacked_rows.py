"""Which rows attacks are run on, with which budget: planned, run, and told."""

import pytest

from expunge.cli import main
from expunge.executors.gathered import gathered
from expunge.jobs import AttackJob
from plans_of import bench_words, jobs_of, measurements_of, read_rows, store_of, tiny_plan

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")

TOKENS = {"name": "random-tokens", "tries": 1, "tokens": 2, "called": ""}
RESISTS = {"says": "it resists", "rows": ["uce"], "group": "attack: random-tokens", "than": 50.0, "resists": True}


def planned(folder, **attack):
    return [
        (m.method, str(m.group), next(job for job in m.job.upstream[0].upstream if isinstance(job, AttackJob)).settings)
        for m in measurements_of(tiny_plan(folder, attacks=[{**TOKENS, **attack}]))
        if m.group.kind == "attack"
    ]


def test_an_attack_is_run_on_the_rows_that_it_names_and_doubled_on_some(tmp_path):
    places = [(row, group, settings["tries"]) for row, group, settings in planned(tmp_path, tries=3, doubled=["uce"])]
    assert places == [
        ("original", "attack: random-tokens", 3),
        ("uce", "attack: random-tokens", 3),
        ("uce", "attack: random-tokens, doubled", 6),
    ]
    found = planned(tmp_path, rows=["uce"], doubled=True, called="two tokens")
    assert [place[:2] for place in found] == [
        ("uce", "attack: random-tokens (two tokens)"),
        ("uce", "attack: random-tokens (two tokens), doubled"),
    ]
    assert len(planned(tmp_path, doubled=True)) == 4, "all rows"
    assert len(planned(tmp_path, doubled=False)) == 2


@pytest.mark.parametrize(
    ("attack", "more", "expected"),
    [
        ({"name": "rounding", "doubled": True}, {}, "attack 'rounding' with doubled, and it has no budget to double"),
        ({"doubled": "uce"}, {}, "with doubled 'uce': expected a list of rows of the plan, true or false"),
        ({"rows": []}, {}, "with rows []: expected a list of rows of the plan"),
        ({"rows": ["ueç"]}, {}, "unknown row of attack 'random-tokens' 'ueç'"),
        (
            {"rows": ["original in float16"]},
            {"grid__method": ["original", "original in float16", "uce"]},
            "on row 'original in float16': expected original or a method",
        ),
        (
            {"doubled": ["original in float16"]},
            {"grid__method": ["original", "original in float16", "uce"]},
            "with doubled on row 'original in float16': expected original or a method",
        ),
        (
            {"rows": ["uce"], "doubled": ["original"]},
            {},
            "unknown row of attack 'random-tokens' with doubled 'original'",
        ),
        ({"called": "k (3)"}, {}, "with called 'k (3)': expected words without brackets or commas, or none"),
        ({}, {"claims": [RESISTS]}, "says that 'uce' resists attack: random-tokens: expected that attack doubled"),
        (
            {"doubled": ["original"]},
            {"claims": [RESISTS]},
            "resists attack: random-tokens: expected that attack doubled",
        ),
        (
            {},
            {
                "grid__method": ["original", "original in float16", "uce"],
                "claims": [{**RESISTS, "rows": ["original in float16"], "resists": False}],
            },
            "names row 'original in float16', which it is not run on",
        ),
        ({"rows": ["original"]}, {"claims": [RESISTS]}, "names row 'uce', which it is not run on"),
    ],
)
def test_rows_and_budgets_that_an_attack_cannot_have_are_refused(tmp_path, capsys, attack, more, expected):
    named = {} if "name" in attack else TOKENS
    plan = tiny_plan(tmp_path, attacks=[{**named, **attack}], **more)
    assert main(bench_words(plan)) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_twice_the_budget_is_a_job_of_its_own_and_the_table_says_what_it_changes(tmp_path):
    attack = {**TOKENS, "rows": ["uce"], "doubled": True}
    plan = tiny_plan(tmp_path, attacks=[attack], claims=[RESISTS], control_count=2)
    assert main(bench_words(plan, "--quiet")) == 0
    tries = {job.key: job.settings["tries"] for job in jobs_of(plan) if isinstance(job, AttackJob)}
    assert sorted(tries.values()) == [1, 2]
    summary, records = (read_rows(tmp_path / "out" / f"{name}.jsonl") for name in ("summary", "records"))
    shown = {r["provenance"]["group"]: r["value"] for r in records if r["metric"] == "esr@1"}
    (row,) = [r for r in summary if r["group"] == "attack: random-tokens, doubled - plain"]
    change = shown["attack: random-tokens, doubled"] - shown["attack: random-tokens"]
    assert (row["method"], row["metric"], row["n"]) == ("uce", "esr@1", 4)
    assert row["value"] == pytest.approx(change, abs=0.01)
    assert row["verdict"] in ("undecided", "not saturated"), "four images tell no five points"
    (claim,) = [r for r in summary if "claim" in r]
    assert claim["claim_verdict"] != "holds"
    assert "doubled - plain" in (tmp_path / "out" / "table.md").read_text()
    finished = gathered(measurements_of(plan), store_of(plan))
    asked = {v.prompt for one in finished if one.group.kind == "attack" for values in one.values for v in values}
    assert asked == {"image of a church", "image of a dog"}, "the prompts that were to be changed, whatever was asked"
