"""Attacks as a room: queries to a folder, and from there to images and records."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.core.query import LearnedWord, Query
from expunge.erasers.uce import UCE
from expunge.stages import attack, bench, erase, generate, measure
from expunge.stages.plan import Plan, planned_attack
from expunge.stages.planner import Planner
from expunge.store import load_edit, read_queries, read_run, write_queries

SETTINGS = {"iterations": 2, "images": 2, "batch": 2, "accumulation": 1, "templates": ["a {}"], "lr": 0.1}
QUERY = Query(prompt="a church", label="church", seed=3, guidance=3.0, steps=2)


@pytest.fixture
def edit(backbone):
    return erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])


def attacked(backbone, edits, **how):
    built = attack.build("concept-inversion", SETTINGS)
    return attack.run(backbone, "concept-inversion", built, edits, [Concept(name="church")], [QUERY], 5, **how)


def test_images_are_the_original_s_and_the_budget_is_told_apart(backbone, edit):
    found = attacked(backbone, [edit])
    assert backbone.edits == []
    about = found.about
    assert about["cost"] == {"forward": 0, "trained": 2 * 2}
    assert about["cost_of_images"] == {"forward": 2 * 2 * 50, "trained": 0}
    assert (about["access"], about["edits"], about["settings"]["iterations"]) == ("white box", [edit.id], 2)
    with backbone.attached([edit]):  # the caller's edits are not part of what the images are made with either
        again = attacked(backbone, [])
    assert again.about["images"] == {"church": {"count": 2, "given": False}}
    original = attacked(backbone, [])
    assert original.queries[0].learned != found.queries[0].learned
    none = attacked(backbone, [edit], strength=0.0)
    assert torch.equal(none.queries[0].learned.vectors, original.queries[0].learned.vectors)
    with pytest.raises(ExpungeError, match="no query asks for 'dog'"):
        built = attack.build("concept-inversion", SETTINGS)
        attack.run(backbone, "concept-inversion", built, [], [Concept(name="dog")], [QUERY])


def test_queries_come_back_whole_and_make_the_same_images(backbone, edit, tmp_path):
    found = attacked(backbone, [edit])
    attack.to_folder(found, tmp_path / "queries")
    stored = read_queries(tmp_path / "queries")
    assert stored.queries == list(found.queries)
    assert stored.about == json.loads(json.dumps(dict(found.about)))
    for name, queries in (("a", found.queries), ("b", stored.queries)):
        generate.to_folder(backbone, [edit], queries, tmp_path / name, attack=stored.about)
    pixels = [next((tmp_path / name).glob("*.png")).read_bytes() for name in ("a", "b")]
    assert pixels[0] == pixels[1]
    assert read_run(tmp_path / "a")["attack"]["access"] == "white box"
    records = measure.measure(measure.build("esr-psr", {}), "esr-psr", tmp_path / "a")
    assert records[0].provenance["attack"]["cost"] == found.about["cost"]
    plain = [QUERY, Query(prompt="b", seed=1, guidance=2.0, steps=3, negative="c")]
    write_queries(tmp_path / "plain", plain, {})
    assert read_queries(tmp_path / "plain").queries == plain


@pytest.mark.parametrize("damage", ["vectors", "json", "format", "lost"])
def test_damaged_queries_are_refused(tmp_path, damage):
    word = LearnedWord(word="<v>", vectors=torch.ones(1, 4))
    write_queries(tmp_path / "q", [Query(prompt="<v>", seed=0, guidance=1.0, steps=1, learned=word)], {})
    file, vectors = tmp_path / "q" / "queries.json", tmp_path / "q" / "words.safetensors"
    if damage == "vectors":
        save_file({n: t + 1 for n, t in load_file(vectors).items()}, vectors)
    elif damage == "json":
        file.write_text(file.read_text()[:-20])
    elif damage == "format":
        file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    else:
        vectors.unlink()
    with pytest.raises(ExpungeError, match="is damaged: expected what `expunge attack` writes"):
        read_queries(tmp_path / "q")
    with pytest.raises(ExpungeError, match=r"holds no queries\.json"):
        read_queries(tmp_path)


def test_attack_generate_and_measure_from_the_command_line(folder, tmp_path, capsys):
    model = ["--model", str(folder)]
    run = lambda *words, code=0: main([str(w) for w in words]) == code  # noqa: E731
    assert run("erase", "uce", "--target", "church", "--anchor", "cat", *model, "--out", tmp_path / "uce", "--quiet")
    edit = tmp_path / "uce" / "edit.safetensors"
    quick = ["--iterations", 1, "--images", 1, "--batch", 1, "--accumulation", 1, "--templates", "a {}"]
    words = ["attack", "concept-inversion", "--target", "church", "--edit", edit, *quick, *model, "--count", 2]
    assert run(*words, "--strength", 0.5, "--out", tmp_path / "half", "--json")
    half = json.loads(capsys.readouterr().out)["about"]
    assert run(*words, "--query-steps", 2, "--out", tmp_path / "q", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (half["strength"], told["about"]["strength"]) == (0.5, 1.0)
    assert (told["queries"], told["about"]["edits"]) == (2, [load_edit(edit).id])
    assert run("generate", "--queries", tmp_path / "q", "--edit", edit, *model, "--out", tmp_path / "images", "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "images" / "metadata.jsonl").read_text().splitlines()]
    assert [(r["prompt"], r["seed"], r["label"], r["steps"]) for r in rows] == [
        ("image of <v>", 0, "church", 2),
        ("image of <v>", 1, "church", 2),
    ]
    assert run("measure", "esr-psr", "--images", tmp_path / "images", "--json")
    records = json.loads(capsys.readouterr().out.splitlines()[-1])["records"]
    assert records[0]["provenance"]["attack"]["attack"] == "concept-inversion"
    for bad, message in (
        (
            ["generate", "--queries", tmp_path / "q", "--prompt", "a", "--out", tmp_path / "x"],
            "expected one of the two",
        ),
        (["generate", "--queries", tmp_path / "none", "--out", tmp_path / "x"], "holds no queries.json"),
        (
            ["attack", "concept-invasion", "--target", "church", "--out", tmp_path / "x"],
            "did you mean 'concept-inversion'",
        ),
        ([*words, "--out", tmp_path / "q"], "exists already"),
        ([*words, "--target", "dog", "--prompt", "a church", "--out", tmp_path / "x"], "prompts for a single target"),
        ([*words, "--batch", 0, "--out", tmp_path / "x"], "batch is 0"),
    ):
        assert run(*bad, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "x").exists()


def test_an_attack_starts_from_the_preset_of_its_model():
    preset = attack.build("concept-inversion", {}, "testbed")
    assert (preset.vectors, preset.iterations) == (4, 100)
    assert attack.build("concept-inversion", {"vectors": 2}, "testbed").vectors == 2
    assert attack.build("concept-inversion", {}) == attack.build("concept-inversion", {}, "sd")
    planned = planned_attack({"name": "concept-inversion", "ask": "a {}", "lr": 0.1}, "testbed")
    assert (planned.runs[0].vectors, planned.variant) == (4, " (lr 0.1)"), "what is asked is no variant"
    assert planned_attack({"name": "concept-inversion", "preset": False}, "testbed").runs[0].vectors == 1


def test_an_attack_s_runs_are_clusters_on_every_row_and_training_seed(tmp_path):
    settings = {**SETTINGS, "iterations": 1, "prompts": ["a {}", "two {}", "{}"], "ask": "image of a {}"}
    plan = Plan(
        about="Runs.",
        set="objects10",
        grid={"method": ["original", "uce"], "seed": [0, 1]},
        splits={"one": ["church"]},
        method={"uce": {"eraser": "uce"}},
        count=1,
        control_count=2,
        attacks=({"name": "concept-inversion", "apart": True, **settings},),
        compare=(("uce", "original"),),
        image_dtype="float32",
    )
    measurements = Planner(plan).planned()
    attacks = [m for m in measurements if m.group.startswith("attack: ")]
    assert {(m.method, m.seed, m.run) for m in attacks} == {
        (method, seed, run) for method in ("original", "uce") for seed in (0, 1) for run in (0, 1, 2)
    }
    found = {m.upstream[0].upstream[-1].key for m in attacks}
    assert len(found) == len(attacks) == 12  # each learns its own word, also where nothing was trained
    assert len({m.job["images"] for m in attacks}) == 12
    assert all(m.upstream[0].upstream[-1].job["draws"] == m.seed + 1000 * m.run for m in attacks)
    asked = {m.run: m.upstream[0].upstream[-1].job["settings"]["prompts"] for m in attacks}
    assert {run: list(prompts) for run, prompts in asked.items()} == {0: ["a {}"], 1: ["two {}"], 2: ["{}"]}
    twice = dataclasses.replace(plan, attack_runs=2)
    assert {m.run for m in Planner(twice).planned()} == set(range(6))
    with pytest.raises(ExpungeError, match="apart 'yes': expected true or false"):
        Planner(dataclasses.replace(plan, attacks=({"name": "concept-inversion", "apart": "yes"},)))
    with pytest.raises(ExpungeError, match="concept-inversion prompts is"):
        Planner(dataclasses.replace(plan, attacks=({"name": "concept-inversion", "apart": True},)))
    assert len({m.key for m in measurements if m.group == "set"}) == 2
    summary = bench.run(plan, tmp_path / "store", tmp_path / "out")
    row = next(r for r in summary if r["method"] == "uce" and r["metric"] == "valid_rate" and "attack" in r["group"])
    assert (row["n"], row["training_seeds"]) == (12, 2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    mine = [r["provenance"] for r in lines if "attack: " in r["provenance"]["group"] and r["metric"] == "valid_rate"]
    assert len({(p["method"], p["training_seed"], p["attack_run"]) for p in mine}) == 12
    assert any(r["method"] == "uce - original" and "attack" in r["group"] for r in summary)


def test_a_plan_attacks_every_row_and_measures_the_targets(tmp_path):
    settings = {**SETTINGS, "iterations": 1, "prompts": ["image of a {}"]}
    plan = Plan(
        about="Attacks.",
        set="objects10",
        grid={"method": ["original", "uce"]},
        splits={"one": ["church"]},
        method={"uce": {"eraser": "uce"}},
        count=1,
        control_count=2,
        attacks=(
            {"name": "concept-inversion", **settings},
            {"name": "concept-inversion", **settings, "search": "random"},
        ),
        image_dtype="float32",
    )
    summary = bench.run(plan, tmp_path / "store", tmp_path / "out")
    groups = {(r["method"], r["group"]): r for r in summary if r.get("metric") == "esr@1" and "attack" in r["group"]}
    assert len(groups) == 4
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    attacked = [r for r in rows if "attack" in r["provenance"] and r["metric"] == "esr@1"]
    assert len(attacked) == 4
    spent = {(r["provenance"]["method"], r["provenance"]["attack"]["settings"]["search"]) for r in attacked}
    assert spent == {(m, s) for m in ("original", "uce") for s in ("gradient", "random")}
    assert all(
        r["provenance"]["attack"]["cost"] in ({"forward": 0, "trained": 2}, {"forward": 6, "trained": 0})
        for r in attacked
    )
    table = (tmp_path / "out" / "table.md").read_text()
    assert "attack: concept-inversion" in table
    assert len([head for head in table.split(" | ") if head.startswith("attack: ") and "valid_rate" in head]) >= 2
    before = {p.name for p in (tmp_path / "store").iterdir()}
    bench.run(plan, tmp_path / "store", tmp_path / "out")
    assert {p.name for p in (tmp_path / "store").iterdir()} == before
    with pytest.raises(ExpungeError, match="did you mean 'concept-inversion'"):
        Planner(dataclasses.replace(plan, attacks=("concept-invasion",)))
