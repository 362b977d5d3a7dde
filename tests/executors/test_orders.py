"""Rows that stand on several erasures, on keys of others, or on pairs: what was planned is what was run."""

import json

import pytest
import torch

from expunge import backbones
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.jobs import EraseJob, FreshKeyJob, GenerateJob, MemoryJob, PairsJob
from expunge.plans.erasures import SALT
from expunge.stages import erase
from expunge.store import EDIT, KEY, load_edit
from plans_of import KPOP, bench_words, jobs_of, measurements_of, opened, read_rows, store_of, tiny_plan

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")


def of_kind(plan, *kinds):
    """A plan's jobs of these very kinds."""
    return [job for job in jobs_of(plan) if type(job) in kinds]


def results_of(plan, name):
    return read_rows(plan.parent / "out" / name)


def test_targets_are_erased_one_after_another_and_measured_after_each(tmp_path):
    plan = tiny_plan(tmp_path, grid__method=["kpop"], method__kpop__order="sequential")
    first, second = of_kind(plan, EraseJob)
    assert (first.targets, second.targets) == (["church"], ["dog"])
    assert "on" not in first.as_json()
    assert second.on == [first.key]
    assert main(bench_words(plan, "--quiet")) == 0
    folders = [job.folder(store_of(plan)) for job in (first, second)]
    one, two = (load_edit(path / EDIT) for path in folders)
    assert two.requires == (one.id,)

    backbone = backbones.load("testbed")
    eraser = first.built()
    with backbone.attached([one]):
        by_hand = erase.run(backbone, "kpop", eraser, [Concept(name="dog")], [], 0, SALT)
    assert by_hand.id == two.id, "the second is an erasure of the model that the first left"
    keys = [load_edit(path / KEY) for path in folders]
    for key in keys:
        with backbone.attached([one, two, key]):
            assert backbone.edits[-1].id == key.id, "each key is at home on the whole stack"

    by = {(r["group"], r["metric"]): r for r in results_of(plan, "summary.jsonl")}
    numbers = {g: (by[g, "esr@1"]["n"], by[g, "psr@1"]["n"]) for g in ("after 1", "after 2", "set")}
    assert numbers == {"after 1": (1, 2), "after 2": (2, 1), "set": (2, 1)}
    assert [by[f"key: own after {n}", "esr@1"]["n"] for n in (1, 2)] == [1, 2]
    spent = [job.result(store_of(plan))["cost"] for job in (first, second)]
    assert by["set", "esr@1"]["erase_equivalents"] == sum(c["forward"] + 3 * c["trained"] for c in spent)
    records = results_of(plan, "records.jsonl")
    last = [r for r in records if r["provenance"]["group"] == "after 2" and r["metric"] == "esr@1"]
    assert [r["concepts"] for r in last] == [["church"], ["dog"]], "a record for each target so far"
    assert all(r["provenance"]["edits"] == [one.id, two.id] for r in last)
    returned = [r for r in records if r["provenance"]["group"] == "key: own after 2" and r["metric"] == "esr@1"]
    assert [(r["concepts"], r["provenance"]["key"] != "") for r in returned] == [(["church"], True), (["dog"], True)]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "after 1 esr@1" in table
    assert "own after 2" in table


def test_the_key_of_another_seed_is_tried_in_this_one_s_model(tmp_path):
    two = {"grid__method": ["kpop"], "grid__seed": [0, 7], "method__kpop__controls": ["own", "other seed"]}
    plan = tiny_plan(tmp_path, **two)
    planned = [m for m in measurements_of(plan) if str(m.group) == "key: other seed"]
    images = {m.job.upstream[0].key: (m.seed, m.job.upstream[0]) for m in planned}
    erased = {job.key: job.seed for job in of_kind(plan, EraseJob)}
    tried = {(seed, erased[job.edits[0]], erased[job.key_job], job.control) for seed, job in images.values()}
    assert tried == {(0, 0, 7, "other seed"), (7, 7, 0, "other seed")}
    assert main(bench_words(plan, "--quiet")) == 0
    shown = {r["group"]: r["n"] for r in results_of(plan, "summary.jsonl") if r["metric"] == "esr@1"}
    assert shown["key: other seed"] == 4
    assert "that of another seed" in (tmp_path / "out" / "table.md").read_text()


def test_erasures_can_stand_on_closed_forms_too(tmp_path):
    """UCE after UCE: both edits touch the same matrices, and the stack adds their changes up."""
    plan = tiny_plan(tmp_path, grid__method=["uce"], method__uce={"eraser": "uce", "order": "sequential"})
    assert main(bench_words(plan, "--quiet")) == 0
    edits = [load_edit(job.folder(store_of(plan)) / EDIT) for job in of_kind(plan, EraseJob)]
    backbone = backbones.load("testbed")
    names = list(edits[0].replaced)
    base = backbone.stored(names)
    with backbone.attached(edits):
        now = backbone.tensors(names)
    for name in names:
        both = base[name] + sum(e.replaced[name] - base[name] for e in edits)
        assert torch.allclose(now[name], both, atol=1e-5), name


def test_fresh_keys_are_learned_on_every_method_s_model_and_counted(tmp_path, capsys):
    rows = {
        "grid__method": ["kpop", "uce"],
        "method__uce": {"eraser": "uce", "controls": ["fresh"]},
        "method__kpop": {"eraser": "kpop", "controls": ["own", "fresh"], "preset": False, "settings": KPOP},
    }
    learning = {"prompt_lr": 0.1, "sampling": {"sampling_steps": 2, "arm": "bank"}}
    plan = tiny_plan(tmp_path, **rows, fresh={"preset": False, "settings": learning, "updates": [1, 3]})
    fresh_keys = of_kind(plan, FreshKeyJob)
    learned = {(job.settings["iterations"], tuple(job.edits)) for job in fresh_keys}
    erased = [job.key for job in of_kind(plan, EraseJob)]
    assert len(erased) == 2
    assert learned == {(n, (key,)) for n in (1, 3) for key in erased}
    shown = {control: [j for j in of_kind(plan, GenerateJob) if j.control == control] for control in ("fresh", "own")}
    fresh = {job.key for job in fresh_keys}
    assert {(job.key_room, job.key_job in fresh) for job in shown["fresh"]} == {("relearn", True)}
    assert shown["own"]
    assert not any("key_room" in job.as_json() for job in shown["own"])
    assert main(bench_words(plan, "--quiet")) == 0
    by = {(r["method"], r["group"], r["metric"]): r for r in results_of(plan, "summary.jsonl")}
    for method in ("kpop", "uce"):
        for updates in (1, 3):
            row = by[method, f"key: fresh {updates}", "esr@1"]
            spent = [job.result(store_of(plan))["cost"] for job in fresh_keys if job.settings["iterations"] == updates]
            assert row["n"] == 2
            assert {c["trained"] for c in spent} == {updates}
            assert row["relearn_equivalents"] in {c["forward"] + 3 * c["trained"] for c in spent}
    assert "fresh 3 updates" in (tmp_path / "out" / "table.md").read_text()
    capsys.readouterr()
    assert main(bench_words(plan, "--dry-run")) == 0
    assert "a fresh key by kpop seed 0: church, dog" in capsys.readouterr().out


def test_strengths_of_one_erasure_reach_the_images_and_the_attack(tmp_path):
    half = {"eraser": "uce", "retain": True, "strength": 0.5}
    attack = {"name": "concept-inversion", "iterations": 1, "images": 1, "batch": 1}
    plan = tiny_plan(tmp_path, grid__method=["uce", "half"], method__half=half, attacks=[attack])
    assert main(bench_words(plan, "--quiet")) == 0
    runs = [json.loads(f.read_text()) for f in (tmp_path / "store").glob("generate-*/images/run.json")]
    assert sorted(run["strength"] for run in runs) == [0.5, 0.5, 1.0, 1.0]
    assert {run["attack"]["strength"] for run in runs if "attack" in run} == {0.5, 1.0}


DUO = {"eraser": "duo", "preset": False, "settings": {"rank": 2, "iterations": 1, "batch": 2}}


def test_a_method_learns_from_the_plans_pairs_which_are_made_once(tmp_path, capsys):
    pairs = {"unsafe": ["a dagger"], "safe": ["a dog"], "target": "weapon", "count": 2, "strength": 0.8}
    plan = tiny_plan(
        tmp_path,
        grid={"method": ["duo"], "split": ["a"], "seed": [0, 1]},
        method__duo={**DUO, "images": "scenes", "settings": {**DUO["settings"], "base_random": 1.0}},
        pairs__scenes=pairs,
        memory=True,
        analyses=[{"name": "trajectories", "every": 1, "count": 1}],
        steps=8,  # with fewer, the judge takes none of the unsafe ones for a weapon
    )
    pairs, erasures = of_kind(plan, PairsJob), of_kind(plan, EraseJob, MemoryJob)
    assert (len(pairs), len(erasures)) == (1, 3), "two training seeds and a count of bytes, on the same pairs"
    assert all(e.images == pairs[0].key in [up.key for up in e.upstream] for e in erasures)
    assert main(bench_words(plan, "--dry-run")) == 0
    assert "2 pairs of weapon" in capsys.readouterr().out
    assert main(bench_words(plan, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    told = {r["told"] for r in summary if r["method"] == "duo" and "told" in r}
    assert told
    assert all("random texts" in t and "2 pairs given" in t and "oracle" in t for t in told)
    spent = [r["pairs_equivalents"] for r in summary if "pairs_equivalents" in r]
    assert spent
    assert set(spent) == {pairs[0].result(store_of(plan))["cost"]["forward"]}
    again = [
        r["knowledge"] for r in results_of(plan, "records.jsonl") if r["provenance"].get("analysis") == "trajectories"
    ]
    assert again
    assert all(k["images"]["unsafe"]["given"] and k["oracles"] for k in again), "trained again on the same pairs"
    path = pairs[0].folder(store_of(plan))
    assert len(list((path / "images").glob("*-safe.png"))) == 2
    drawn = json.loads((path / "result.json").read_text())
    assert drawn["cost"]["forward"] >= 2 * 2 * 8 + 2 * 2 * 6, (
        "two unsafe ones at 8 steps, and 6 or 7 of them to redraw each"
    )


def test_words_erased_apart_are_edits_of_their_own_attached_together(tmp_path, capsys):
    rows = {
        "grid__method": ["duo"],
        "method__duo": {**DUO, "order": "apart", "images": ["one", "two"]},
        "pairs__one": {"unsafe": ["a church"], "safe": ["a radio"], "count": 2},
        "pairs__two": {"unsafe": ["a dog"], "safe": ["a radio"], "count": 2},
    }
    plan = tiny_plan(tmp_path, **rows)
    erasures = of_kind(plan, EraseJob)
    assert [e.targets for e in erasures] == [["church"], ["dog"]]
    assert len({e.images for e in erasures}) == 2
    assert not any("on" in e.as_json() for e in erasures), "each on the model as it is"
    (images,) = of_kind(plan, GenerateJob)
    assert images.edits == [e.key for e in erasures]
    assert main(bench_words(plan, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    took = next(r["erase_equivalents"] for r in summary if "erase_equivalents" in r)
    assert took == sum(e.cost.equivalents for e in erasures), "what both took together"
    assert "4 pairs given" in next(r["told"] for r in summary if "told" in r)
    first = results_of(plan, "records.jsonl")[0]
    assert first["knowledge"]["images"]["unsafe"]["prompts"] == ["a church", "a dog"], "of both edits"
    with pytest.raises(ExpungeError, match="target 'dog' is given twice"):
        opened(tiny_plan(tmp_path, **rows, method__kpop=None, words={"church": ["dog"]}))
