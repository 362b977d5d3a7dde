"""Analyses from the command line and in a plan, on the testbed."""

import json

import pytest
import torch
from safetensors.torch import save_file

from expunge import backbones
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.erasers.sld import SLD
from expunge.erasers.uce import UCE
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.read import read_plan
from expunge.stages import analyse, erase
from expunge.store import load_edit
from tiny import tiny_flux_pipeline

SET = """
about = "Three objects."
concepts = ["church", "dog", "radio"]
[splits]
a = ["church", "dog"]
[dev]
seed = 1
[dev.prompts]
church = ["a church"]
dog = ["a dog"]
radio = ["a radio"]
[test]
seed = 9
[test.prompts]
church = ["image of a church", "a drawing of a church"]
dog = ["image of a dog"]
radio = ["image of a radio"]
"""
PLAN = """
about = "A small plan."
set = "{set}"
count = 1
steps = 4
image_dtype = "float32"
analyses = {analyses}
compare = [["kpop", "uce"]]

[grid]
method = ["original", "uce", "kpop"]
seed = [0, 1]

[method.uce]
eraser = "uce"

[method.kpop]
eraser = "kpop"
controls = []
preset = false
settings = {{ iterations = 3, lr = 1e-3, prompt_lr = 0.1, sampling = {{ sampling_steps = 2 }} }}
"""


def written(tmp_path, analyses):
    (tmp_path / "three.toml").write_text(SET)
    file = tmp_path / "plan.toml"
    file.write_text(PLAN.format(set=tmp_path / "three.toml", analyses=analyses))
    return file


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_plan_analyses_each_edit_and_pairs_methods(tmp_path):
    others = """, { name = "closeness", objects = ["dog", "cat", "bus", "radio", "guitar"], count = 2 },
        { name = "prompt-mass", count = 1 }, { name = "trajectories", every = 1, count = 1 }]"""
    plan = written(tmp_path, '[{ name = "daam", count = 2, kept = 1 }' + others)
    out = tmp_path / "out"
    assert (
        main(["bench", str(plan), "--store", str(tmp_path / "store"), "--out", str(out), "--workers", "1", "--quiet"])
        == 0
    )
    rows = [r for r in lines(out / "summary.jsonl") if r["group"] == "analysis: daam"]
    variant = " (count 2, kept 1)"
    by = {(r["method"], r["metric"].removesuffix(variant)): r for r in rows}
    assert by["original", "entropy_erased"]["training_seeds"] == by["uce", "entropy_erased"]["training_seeds"] == 1
    assert by["kpop", "entropy_erased"]["training_seeds"] == 2
    assert by["kpop", "entropy_erased"]["n"] == 2 * 2 * 2, "words, images, training seeds"
    assert ("original", "entropy_erased_change") not in by
    assert ("kpop", "entropy_erased_recovered") in by
    assert ("uce", "entropy_erased_recovered") not in by, "UCE has no key"
    change = by["uce", "entropy_erased"]["value"] - by["original", "entropy_erased"]["value"]
    assert by["uce", "entropy_erased_change"]["value"] == pytest.approx(change, abs=2e-3)
    paired = by["kpop - uce", "mass_erased"]
    expected = by["kpop", "mass_erased"]["value"] - by["uce", "mass_erased"]["value"]
    assert paired["value"] == pytest.approx(expected, abs=2e-3)
    assert paired["low"] <= paired["value"] <= paired["high"]
    assert "Analysis: daam" in (out / "table.md").read_text()
    check_the_others(lines(out / "records.jsonl"), lines(out / "summary.jsonl"))
    records = [r for r in lines(out / "records.jsonl") if r["provenance"]["group"] == "analysis: daam"]
    assert {r["eraser"] for r in records} == {None, "uce", "kpop"}
    assert {r["subject"] for r in records} == {"original", "edited"}
    assert {r["split"] for r in records} == {"test"}
    figures = {p.name for p in (out / "figures").glob("daam-*.json")}
    assert "daam-count-2-kept-1-kpop-a-seed-1-heat.json" in figures
    assert len(figures) == 4 * (1 + 1 + 2)
    assert json.loads((out / "figures" / min(figures)).read_text())["format"] == 1
    again = json.dumps(rows, sort_keys=True)
    assert (
        main(["bench", str(plan), "--store", str(tmp_path / "store"), "--out", str(out), "--workers", "1", "--quiet"])
        == 0
    )
    assert (
        json.dumps([r for r in lines(out / "summary.jsonl") if r["group"] == "analysis: daam"], sort_keys=True) == again
    )


def check_the_others(records, summary):
    """What each method has, by analysis: all that it can be looked at for, and no more."""
    of = {}
    for r in records:
        if r["provenance"]["group"].startswith("analysis: "):
            of.setdefault(r["provenance"]["group"].removeprefix("analysis: "), set()).add(r["provenance"]["method"])
    assert of["closeness"] == {"uce", "kpop"}
    assert of["prompt-mass"] == of["trajectories"] == {"kpop"}, "UCE has neither key nor training"
    rows = {(r["method"], r["metric"].split(" ")[0]): r for r in summary}
    assert rows["kpop", "prompt"]["training_seeds"] == 2
    assert rows["kpop", "prompt_uniform"]["value"] == pytest.approx(100 * 10 / 50)
    assert rows["kpop", "clip_ee_movement"]["n"] == 2 * 2, "a number a target and training seed"
    alone = [r for r in records if r["metric"] == "rho"]
    for method in {r["provenance"]["method"] for r in alone}:
        mine = [r for r in alone if r["provenance"]["method"] == method]
        row = rows[method, "rho"]
        assert row["value"] == pytest.approx(sum(r["value"] for r in mine) / len(mine), abs=1e-3)
        assert row["low"] == pytest.approx(min(r["low"] for r in mine), abs=1e-3)
    assert ("kpop - uce", "rho") not in rows, "a correlation has no values to pair"
    assert ("kpop - uce", "change") in rows
    seeds = {r["seed"] for r in records if r["metric"] == "clip_ee"}
    assert seeds == {0, 1}


def test_a_plan_with_an_unknown_analysis_or_setting_is_refused(tmp_path):
    for analyses, complaint in (
        ('["damm"]', "unknown analysis 'damm': did you mean 'daam'"),
        ('[{ name = "daam", counts = 2 }]', "did you mean 'count'"),
        ("[3]", "plan's analyses name 3"),
    ):
        with pytest.raises(ExpungeError, match=complaint):
            checked(read_plan(written(tmp_path, analyses)))


def test_an_analysis_s_first_prompt_of_a_word_is_the_set_s(tmp_path):
    planned = expanded(checked(read_plan(written(tmp_path, '["daam"]'))))
    jobs = [p for p in planned if p.job.room == "analyse"]
    assert [p.method for p in jobs] == ["original", "uce", "kpop", "kpop"]
    assert jobs[0].job.prompts[:2] == [["image of a church", "church"], ["a drawing of a church", "church"]]
    assert jobs[0].job.first_seed == 9
    assert [bool(p.job.key_job) for p in jobs] == [False, False, True, True]
    assert len({p.job.key for p in jobs}) == 4


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """A folder with an edit and its key."""
    out = tmp_path_factory.mktemp("erased") / "kpop"
    words = ["--target", "church", "--retain", "dog", "--no-check", "--out", str(out), "--quiet"]
    assert main(["erase", "kpop", *words, "--iterations", "3", "--sampling-steps", "2"]) == 0
    return out


def test_the_command_writes_records_and_figures(erased, tmp_path, capsys):
    edit, key = erased / "edit.safetensors", erased / "key.safetensors"
    out = tmp_path / "daam"
    command = ["analyse", "daam", "--edit", str(edit), "--key", str(key), "--count", "1", "--out", str(out), "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)["records"]
    assert printed == lines(out / "records.jsonl")
    assert {"entropy_erased", "entropy_kept_change", "mass_erased_recovered"} <= {r["metric"] for r in printed}
    assert printed[0]["concepts"] == ["church"]
    assert printed[0]["knowledge"]["retain"] == ["dog"]
    assert {p.name for p in (out / "figures").iterdir()} == {"heat.json", "heads.json", "entropy.json", "mass.json"}
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_a_training_is_run_again_as_it_ran_if_the_key_tells_its_secret(erased, tmp_path, capsys):
    edit, key, out = erased / "edit.safetensors", erased / "key.safetensors", tmp_path / "along"
    words = ["analyse", "trajectories", "--edit", str(edit), "--every", "2", "--count", "1", "--out", str(out)]
    assert main(words) == 2
    assert "with a secret: expected its key" in capsys.readouterr().err
    assert main([*words, "--key", str(key), "--quiet"]) == 0
    shown = json.loads((out / "figures" / "prompt.json").read_text())
    end = {line["name"]: line["y"][-1] for line in shown["series"]}
    prompt = load_edit(key).prompts["church"].float().mean(0)
    with torch.no_grad():
        text = backbones.load("testbed").encode(["church"]).embeds[0].mean(0)
    assert shown["series"][0]["x"] == [1, 2, 3]
    assert end["church"] == pytest.approx(float(torch.cosine_similarity(prompt, text, dim=0)), abs=1e-4)


def test_the_command_says_what_is_missing(erased, tmp_path, capsys):
    edit = str(erased / "edit.safetensors")
    for words, complaint in (
        (["daam"], "no target"),
        (["daam", "--edit", edit, "--key", edit], "expected the key.safetensors"),
        (["closeness", "--target", "church"], "expected an edit"),
        (["prompt-mass", "--edit", edit], "expected an edit's private key"),
        (["trajectories", "--target", "church"], "0 edits for an analysis along a training"),
        (["damm"], "did you mean 'daam'"),
    ):
        out = [] if words == ["damm"] else ["--out", str(tmp_path / "x")]
        assert main(["analyse", *words, *out]) == 2, words
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main(["analyse", "--help"]) == 0
    assert "daam" in capsys.readouterr().out


def test_an_imported_edit_has_no_training_to_follow(erased, tmp_path, capsys):
    model = backbones.load("testbed")
    weights = {n: t + 0.1 for n, t in model.tensors(model.text_inputs()[:1]).items()}
    save_file({n.removeprefix("unet."): t.contiguous() for n, t in weights.items()}, tmp_path / "theirs.safetensors")
    edit = tmp_path / "mine" / "edit.safetensors"
    words = ["--method", "esd", "--target", "church", "--out", str(edit.parent), "--quiet"]
    assert main(["import", str(tmp_path / "theirs.safetensors"), *words]) == 0
    capsys.readouterr()
    assert main(["analyse", "trajectories", "--edit", str(edit), "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert (
        "was imported from 'theirs.safetensors', whose training is not known: expected one that expunge trained"
        in error
    )
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_on_flux_an_edit_that_acts_through_a_pair_is_looked_at_with_one():
    backbone = backbones.of(tiny_flux_pipeline())
    edits = [
        erase.run(backbone, name, eraser, [Concept(name="church")], [])
        for name, eraser in (("sld", SLD()), ("uce", UCE(anchor="cat")))
    ]
    looks = [analyse.study(backbone, analyse.build("closeness", {}), [edit], None) for edit in edits]
    assert [{q.true_cfg for q in look.queries(["dog"], 2)} for look in looks] == [{4.0}, {1.0}]
