"""One plan on models of several kinds: what it says otherwise for each, and what that comes to."""

import json
from pathlib import Path

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.jobs import EraseJob, in_order
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.read import read_plan
from plans_of import SET, read_rows, tiny_plan, written

PAPER = [f"kpop-{what}" for what in (*(f"table{n}" for n in range(2, 8)), *(f"fig{n}" for n in range(1, 7)))]


def test_a_plan_runs_on_another_kind_of_model_by_its_name(folder, tmp_path, capsys):
    photos = json.loads(json.dumps(SET).replace("dog", "tench"))
    on = {
        "about": "The same on Stable Diffusion.",
        "set": str(written(tmp_path / "photos.toml", photos)),
        "metrics": [{"name": "esr-psr", "judge": "imagenet:weights=random"}],
        "others": {},
        "image_dtype": "float32",
    }
    rows = {"others": {"set": "everyday"}, "method__kpop__controls": [], "grid__method": ["original", "kpop"]}
    plan = tiny_plan(tmp_path, **rows, on={"sd": on})
    said = ["bench", str(plan), "--store", str(tmp_path / "store"), "--workers", "1", "--quiet"]
    own = read_plan(plan)
    assert (own.model, own.about) == ("testbed", "A small plan.")
    assert read_plan(plan, "testbed") == own
    assert main([*said, "--model", str(folder), "--out", str(tmp_path / "sd")]) == 0
    table = (tmp_path / "sd" / "table.md").read_text()
    assert table.startswith("The same on Stable Diffusion.")
    assert "others" not in table
    records = read_rows(tmp_path / "sd" / "records.jsonl")
    assert {r["provenance"]["instrument"]["weights"] for r in records if r["metric"] == "esr@1"} == {"random"}
    assert {c for r in records for c in r["concepts"]} <= {"church", "tench", "radio"}

    capsys.readouterr()
    tiny_plan(tmp_path, **rows)
    assert main([*said, "--model", str(folder), "--out", str(tmp_path / "none")]) == 2
    assert "of kind sd: expected a table [on.sd] in it" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    for bad, expected in (
        ({"sd": {"set": "x"}}, "an about of its own"),
        ({"sd": {"about": "x", "model": "y"}}, "and no model"),
        ({"sd": {"about": "x", "metric": ["ner"]}}, "did you mean 'metrics'"),
        ({"sdx": {"about": "x"}}, "did you mean 'sdxl'"),
        ({"testbed": {"about": "x"}}, "expected another kind of model"),
    ):
        with pytest.raises(ExpungeError, match=expected):
            read_plan(tiny_plan(tmp_path, on=bad))


@pytest.mark.parametrize("name", PAPER)
def test_every_plan_of_the_paper_can_be_planned_on_stable_diffusion(name, folder, tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    (tmp_path / "benchmarks").symlink_to(root / "benchmarks")
    (tmp_path / "i2p.csv").write_text("prompt,evaluation_seed\na nude,7\n")
    (tmp_path / "coco_30k.csv").write_text("prompt,evaluation_seed\na cat on a mat,7\n")
    artists = ["Kelly McKernan", "Thomas Kinkade", "Tyler Edlin", "Kilian Eng", "Ajin: Demi Human"]
    lines = [f"a city by {artist},{artist},{seed}" for seed, artist in enumerate(artists)]
    (tmp_path / "artists.csv").write_text("\n".join(["prompt,artist,evaluation_seed", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    plan = read_plan(Path("benchmarks") / f"{name}.toml", str(folder))
    measured = expanded(checked(plan))
    steps = in_order(m.job for m in measured)
    assert steps
    assert '"testbed' not in json.dumps([job.as_json() for job in steps]), "nothing of the testbed judges photographs"
    said = (plan.about, plan.figures, plan.histograms, plan.claims)
    assert "estbed" not in str(said)
    of_rows: dict[str, set[str]] = {}
    for m in measured:
        of_rows.setdefault(m.method, set()).update(job.key for job in in_order([m.job]) if isinstance(job, EraseJob))
    erasures = [frozenset(keys) for row, keys in of_rows.items() if row != "original"]
    assert len(set(erasures)) == len(erasures), "two rows are the same erasure"
    for claim in plan.claims:
        assert set(claim.rows) <= set(plan.grid.method)
