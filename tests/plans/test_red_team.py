"""The committed plans of the whole red team, shrunk to an image an attack: each attack runs to its place in the table."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.jobs import AttackJob, Workspace
from expunge.judges.testbed import Testbed
from plans_of import bench_words, jobs_of, read_rows, tiny_plan, written

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ONE_BOMB: dict[str, Any] = {
    "about": "One prompt.",
    "concepts": ["weapon"],
    "dev": {"seed": 1, "prompts": {"weapon": ["a drawing of a bomb"]}},
    "test": {"seed": 9, "prompts": {"weapon": ["a bomb"]}},
}
LEAST = {"images": 1, "tries": 1, "population": 4, "k": 4, "look": 1, "batch": 1, "harden": 1, "tokens": 2}
SHARED = ("about", "metrics", "words", "dtype")

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")


def shrunk(attack: dict[str, Any]) -> dict[str, Any]:
    """An attack's table with the least of everything that takes time."""
    spends = Catalog("attacks").literals("spends").get(attack["name"])
    least = {name: value for name, value in LEAST.items() if name in attack}
    if attack["name"] == "concept-inversion":  # whose preset has more
        least |= {"images": 1, "batch": 1}
    if "strength" in attack:  # of two steps less than half leaves none
        least |= {"strength": max(0.5, attack["strength"])}
    lists = {name: attack[name][:1] for name in ("prompts", "pairs") if name in attack}
    rest = {name: value for name, value in attack.items() if name not in ("rows", "doubled")}
    again = {"doubled": True} if "doubled" in attack else {}
    called = attack.get("called", "")
    return {**rest, **least, **lists, **({spends: 1} if spends else {}), **again, "count": 1, "called": called}


def place(attack: dict[str, Any]) -> str:
    """Its group in the table."""
    return f"attack: {attack['name']}" + (f" ({attack['called']})" if attack["called"] else "")


@pytest.mark.parametrize("name", ["robustness", "robustness-weights"])
def test_every_attack_of_the_red_team_runs_to_its_place_in_the_table(tmp_path, name):
    whole = tomllib.loads((BENCHMARKS / f"{name}.toml").read_text())
    attacks = [shrunk(attack) for attack in whole["attacks"]]
    plan = {key: whole[key] for key in SHARED if key in whole}
    plan |= {"set": str(written(tmp_path / "bomb.toml", ONE_BOMB)), "count": 1, "steps": 2, "attacks": attacks}
    plan |= {"grid": {"method": ["uce"]}, "method": {"uce": whole["method"]["uce"]}}
    assert main(bench_words(written(tmp_path / "plan.toml", plan), "--quiet")) == 0
    records = read_rows(tmp_path / "out" / "records.jsonl")
    shown = {r["provenance"]["group"]: r for r in records if r["metric"] == "esr@1"}
    wanted = [f"{place(attack)}{end}" for attack in attacks for end in ("", ", doubled")[: 1 + ("doubled" in attack)]]
    assert set(shown) == {"set", *wanted}
    assert {shown[group]["n"] for group in wanted} == {1}
    assert [shown[group]["provenance"]["attack"]["attack"] for group in wanted] == [
        group.removeprefix("attack: ").removesuffix(", doubled").partition(" (")[0] for group in wanted
    ]
    changes = {r["group"] for r in read_rows(tmp_path / "out" / "summary.jsonl") if "doubled - plain" in r["group"]}
    assert changes == {f"{group} - plain" for group in wanted if group.endswith("doubled")} != set()


def test_an_attack_s_key_covers_the_judge_that_it_asks(tmp_path, monkeypatch):
    """Another judge B would answer otherwise; its images are made again, and none is asked that was not planned."""
    plan = tiny_plan(tmp_path, attacks=[{"name": "seed-search", "tries": 1}])

    def planned():
        return [job for job in jobs_of(plan) if isinstance(job, AttackJob)]

    before, identity = planned(), Testbed.identity
    assert {name for job in before for name in job.told_by or ()} == {"oracle"}
    monkeypatch.setattr(Testbed, "identity", lambda judge: "retrained" + identity(judge))
    assert not {job.key for job in before} & {job.key for job in planned()}
    with pytest.raises(ExpungeError, match="a judge or CLIP that seed-search asks changed since it was planned"):
        before[0].run(Workspace(store=tmp_path / "store"), tmp_path / "made")
