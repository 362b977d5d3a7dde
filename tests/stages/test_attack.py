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
from expunge.core.query import LearnedWord, Query, Start
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
from expunge.stages import attack, bench, erase, generate, measure
from expunge.stages.plan import Plan, planned_attack
from expunge.stages.planner import Planner
from expunge.store import load_edit, read_images, read_queries, read_run, save_edit, write_queries
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
    assert Searching().foreseen(1, 1, 4).forward == 5 * 2 * 4
    judge = Catalog("judges").open("testbed")
    asked = [dataclasses.replace(query, prompt=f"image of a {word}church") for word in ("", "small ", "red ")]
    sure = judge.confidence(torch.cat([model.generate([q]).pixels for q in asked]), "church")
    assert answer.queries == [asked[int(sure.argmax())]]
    images = generate.to_folder(model, [], answer.queries, tmp_path / "images", attack=answer.about)
    for judge_name, same in (("testbed", True), ("testbed:network=b", False)):
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
