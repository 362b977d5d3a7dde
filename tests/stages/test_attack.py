"""Attacks as a room: queries to a folder, and from there to images and records."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge import backbones
from expunge.cli import main
from expunge.core.attack import Attack, Provocation
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.core.knowledge import Knowledge
from expunge.core.query import LearnedWord, Query
from expunge.core.victim import BlackBox, WhiteBox
from expunge.erasers.uce import UCE
from expunge.executors import bench
from expunge.jobs import AttackJob
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.plugins import planned_attack
from expunge.plans.read import typed
from expunge.plans.schema import Named
from expunge.stages import attack, erase, generate, measure
from expunge.store import load_edit, read_images, read_queries, read_run, save_edit, write_queries
from plans_of import tiny_set

SETTINGS = {"iterations": 2, "images": 2, "batch": 2, "accumulation": 1, "templates": ["a {}"], "lr": 0.1}
SETTINGS |= {"steps": 4}
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


def test_what_an_attack_was_told_goes_with_its_images(backbone, edit):
    about = attacked(backbone, [edit]).about
    assert about["knowledge"] == {"phrases": ["a {}", "a photo of a {}"]}, (
        "its templates and prompts, and nothing empty"
    )
    assert "oracles" not in about
    told = Knowledge(anchor="", phrases=("a {}",), random_texts=True, words=("gun",), oracles=("testbed",))
    every = {"anchor": "", "phrases": ["a {}"], "random_texts": True, "words": ["gun"]}
    assert attack._told(told) == {"knowledge": every}
    assert attack._told(Knowledge(oracles=("testbed",))) == {}


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
    quick = ["--iterations", 1, "--images", 1, "--batch", 1, "--accumulation", 1, "--steps", 4, "--templates", "a {}"]
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
    planned = planned_attack(Named("concept-inversion", {"ask": "a {}", "lr": 0.1}, " (lr 0.1)"), "testbed")
    assert (planned.runs[0].vectors, planned.variant) == (4, " (lr 0.1)")
    table = {"name": "concept-inversion", "ask": "a {}", "lr": 0.1}
    plan = typed("plan", {"about": "", "set": "objects10", "grid": {"method": "original"}, "attacks": [table]})
    assert plan.attacks == (Named("concept-inversion", {"ask": "a {}", "lr": 0.1}, " (lr 0.1)"),), (
        "no variant by asking"
    )
    assert planned_attack(Named("concept-inversion", {"preset": False}, ""), "testbed").runs[0].vectors == 1


def test_an_attack_s_runs_are_clusters_on_every_row_and_training_seed(tmp_path):
    settings = {**SETTINGS, "iterations": 1, "prompts": ["a {}", "two {}", "{}"], "ask": "image of a {}"}
    tables = {
        "about": "Runs.",
        "set": str(tiny_set(tmp_path / "three.toml")),
        "steps": 2,
        "grid": {"method": ["original", "uce"], "seed": [0, 1]},
        "splits": {"one": ["church"]},
        "method": {"uce": {"eraser": "uce"}},
        "count": 1,
        "control_count": 2,
        "attacks": ({"name": "concept-inversion", "apart": True, **settings},),
        "compare": (("uce", "original"),),
        "image_dtype": "float32",
    }
    plan = typed("plan", tables)
    measurements = expanded(checked(plan))
    attacks = [m for m in measurements if m.group.kind == "attack"]
    assert {(m.method, m.seed, m.run) for m in attacks} == {
        (method, seed, run) for method in ("original", "uce") for seed in (0, 1) for run in (0, 1, 2)
    }
    jobs = {(m.method, m.seed, m.run): m.job.upstream[0].upstream[-1] for m in attacks}
    assert all(isinstance(job, AttackJob) for job in jobs.values())
    assert len({job.key for job in jobs.values()}) == len(attacks) == 12  # each learns its own word, also untrained
    assert len({m.job.images for m in attacks}) == 12
    assert all(job.draws == seed + 1000 * run for (_, seed, run), job in jobs.items())
    asked = {run: job.settings["prompts"] for (_, _, run), job in jobs.items()}
    assert {run: list(prompts) for run, prompts in asked.items()} == {0: ["a {}"], 1: ["two {}"], 2: ["{}"]}
    twice = dataclasses.replace(plan, attack_runs=2)
    assert {m.run for m in expanded(checked(twice))} == set(range(6))
    with pytest.raises(ExpungeError, match="apart 'yes': expected true or false"):
        checked(typed("plan", {**tables, "attacks": ({"name": "concept-inversion", "apart": "yes"},)}))
    with pytest.raises(ExpungeError, match="concept-inversion prompts is"):
        checked(typed("plan", {**tables, "attacks": ({"name": "concept-inversion", "apart": True},)}))
    assert len({m.job.key for m in measurements if m.group.kind == "set"}) == 2
    summary = bench.run(plan, tmp_path / "store", tmp_path / "out")
    row = next(r for r in summary if r["method"] == "uce" and r["metric"] == "valid_rate" and "attack" in r["group"])
    assert (row["n"], row["training_seeds"]) == (12, 2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    mine = [r["provenance"] for r in lines if "attack: " in r["provenance"]["group"] and r["metric"] == "valid_rate"]
    assert len({(p["method"], p["training_seed"], p["attack_run"]) for p in mine}) == 12
    assert any(r["method"] == "uce - original" and "attack" in r["group"] for r in summary)


def test_a_plan_attacks_every_row_and_measures_the_targets(tmp_path):
    settings = {**SETTINGS, "iterations": 1, "prompts": ["image of a {}"]}
    tables = {
        "about": "Attacks.",
        "set": str(tiny_set(tmp_path / "three.toml")),
        "steps": 2,
        "grid": {"method": ["original", "uce"]},
        "splits": {"one": ["church"]},
        "method": {"uce": {"eraser": "uce"}},
        "count": 1,
        "control_count": 2,
        "attacks": (
            {"name": "concept-inversion", **settings},
            {"name": "concept-inversion", **settings, "search": "random"},
        ),
        "image_dtype": "float32",
    }
    plan = typed("plan", tables)
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
        checked(typed("plan", {**tables, "attacks": ("concept-invasion",)}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searching(Attack[BlackBox]):
    """Asks for images in a few words, and keeps what a judge is surest of."""

    access, knows, tuning = "queries", {"oracle": "oracles"}, ("words",)
    oracle: str = "testbed"
    words: tuple[str, ...] = ("", "small ", "red ")

    def budget(self, targets, queries):
        return 5

    def provoke(self, victim, task, queries):
        prompts = [f"image of a {word}{task.targets[0].name}" for word in self.words]
        pixels = victim.images([dataclasses.replace(queries[0], prompt=p) for p in prompts])
        best = prompts[int(victim.verdicts(pixels, task.targets[0].name).argmax())]
        return Provocation(queries=[dataclasses.replace(queries[0], prompt=best)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Undoing(Attack[WhiteBox]):
    """Puts the base's own matrices back, and asks in another precision if told."""

    access, knows, tuning = "white box", {}, ("dtype", "by")
    dtype: str | None = None
    by: float = 0.0

    def provoke(self, victim, task, queries):
        model = victim.backbone
        with model.bare():
            base = {n: t + self.by for n, t in model.tensors(model.text_inputs()).items()}
        return Provocation(queries=queries, edit=model.edit_of(base), dtype=self.dtype)


def test_an_attack_that_asks_an_oracle_is_counted_and_seen_in_records(tmp_path):
    model = backbones.load("testbed")
    query = Query(prompt="image of a church", label="church", seed=3, guidance=4.0, steps=4)
    before = model.cost
    answer = attack.run(model, "searching", Searching(), [], [Concept(name="church")], [query])
    assert answer.about["access"] == "queries"
    assert answer.about["budget"] == {"images": 5, "asked": 3}
    assert answer.about["oracles"] == ["testbed"]
    assert "edit" not in answer.about
    assert "dtype" not in answer.about
    assert answer.about["cost"] == {"forward": 3 * 2 * 4, "trained": 0} == dataclasses.asdict(model.cost - before)
    assert Searching().foreseen(1, 1, 4, 2).forward == 5 * 2 * 4
    judge = Catalog("judges").open("testbed")
    asked = [dataclasses.replace(query, prompt=f"image of a {word}church") for word in ("", "small ", "red ")]
    sure = judge.confidence(torch.cat([model.generate([q]).pixels for q in asked]), "church")
    assert answer.queries == [asked[int(sure.argmax())]]
    images = generate.to_folder(model, [], answer.queries, tmp_path / "images", attack=answer.about)
    assert "knowledge" not in answer.about, "it was told nothing beside"
    for judge_name, same in (("testbed", True), ("testbed:network=a", True), ("testbed:network=b", False)):
        metric = measure.build("esr-psr", {"judge": judge_name})
        record = measure.measure(metric, "esr-psr", images, ["church"])[0]
        assert record.knowledge["same_judge"] is same, "the attack chose by the judge that reports"
        assert record.knowledge["oracles"] == ["testbed"]


def test_an_attack_s_own_edit_goes_on_top_and_comes_back_from_its_folder(backbone, edit, tmp_path):
    """Here the attack undoes the erasure: its images are the original's."""
    answer = attack.run(backbone, "undoing", Undoing(), [edit], [Concept(name="church")], [QUERY])
    assert answer.edit.requires == (edit.id,)
    assert answer.about["edit"] == answer.edit.id
    assert backbone.edits == []
    again = attack.read(attack.to_folder(answer, tmp_path / "queries"))
    assert (again.queries, again.about, again.edit.id, again.dtype) == ([QUERY], answer.about, answer.edit.id, None)
    plain = generate.to_folder(backbone, [], [QUERY], tmp_path / "plain")
    held = generate.to_folder(backbone, [edit], [QUERY], tmp_path / "held")
    how = {"attack": again.about, "attack_edit": again.edit}
    broken = generate.to_folder(backbone, [edit], again.queries, tmp_path / "broken", strength=[1.0], **how)
    pixels = [read_images(folder)[0].pixels().int() for folder in (plain, held, broken)]
    assert (pixels[0] - pixels[1]).abs().max() > 1
    assert (pixels[0] - pixels[2]).abs().max() <= 1
    run = read_run(broken)
    assert [e["id"] for e in run["edits"]] == [edit.id], "which erased; the attack's stands with the attack"
    assert run["attack"]["edit"] == answer.edit.id
    assert backbone.edits == []
    other = tmp_path / "queries" / "edit.safetensors"
    other.unlink()
    save_edit(edit, other)
    with pytest.raises(ExpungeError, match=f"is the edit {edit.id}, not {answer.edit.id}"):
        attack.read(tmp_path / "queries")


def test_an_attack_s_precision_is_wanted_of_the_model(backbone, edit, tmp_path):
    answer = attack.run(backbone, "undoing", Undoing(dtype="bfloat16"), [edit], [Concept(name="church")], [QUERY])
    assert answer.about["dtype"] == answer.dtype == "bfloat16"
    with pytest.raises(ExpungeError, match=r"in bfloat16, and the model is in float32: expected the same \(--dtype\)"):
        answer.check(backbone)
    plain = attack.run(backbone, "undoing", Undoing(), [edit], [Concept(name="church")], [QUERY])
    plain.check(backbone)
    with pytest.raises(ExpungeError, match="undoing made NaN or infinity of"):
        attack.run(backbone, "undoing", Undoing(by=float("nan")), [edit], [Concept(name="church")], [QUERY])
    assert backbone.edits == []


def test_the_command_line_generates_with_an_attack_s_edit_and_refuses_another_precision(tmp_path, capsys):
    model = backbones.load("testbed")
    query = Query(prompt="image of a church", label="church", seed=3, guidance=4.0, steps=2)
    edit = erase.run(model, "uce", UCE(anchor="cat"), [Concept(name="church")], [])
    save_edit(edit, tmp_path / "edit.safetensors")
    answer = attack.run(model, "undoing", Undoing(), [edit], [Concept(name="church")], [query])
    attack.to_folder(answer, tmp_path / "queries")
    words = [
        "generate",
        "--queries",
        str(tmp_path / "queries"),
        "--edit",
        str(tmp_path / "edit.safetensors"),
        "--quiet",
    ]
    assert main([*words, "--out", str(tmp_path / "broken")]) == 0
    assert read_run(tmp_path / "broken")["attack"]["edit"] == answer.edit.id
    original = model.generate([query]).pixels[0].int()
    assert (read_images(tmp_path / "broken")[0].pixels().int() - original).abs().max() <= 1
    half = dataclasses.replace(answer, about={**answer.about, "dtype": "bfloat16"})
    attack.to_folder(half, tmp_path / "half")
    assert main([*words[:2], str(tmp_path / "half"), *words[3:], "--out", str(tmp_path / "none")]) == 2
    assert "expected the same (--dtype)" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
