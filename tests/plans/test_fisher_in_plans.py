"""Plans that make the Fisher information that a method holds to: a job of its own, for all rows, splits and seeds."""

import dataclasses
import json
from copy import deepcopy

import pytest

from expunge.cli import main
from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.jobs import EraseJob, FisherJob, MemoryJob, WantedJob
from expunge.maths.fisher import Estimate
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.read import read_plan
from expunge.store import FISHER, load_edit, read_fisher
from plans_of import bench_words, jobs_of, read_rows, store_of, tiny_plan

WISH = {"group": "xattn", "replay": ["a picture", "a plant"], "count": 3, "images": 3, "timesteps": 2, "rows": 2}
AMNESIA = {"surrogate": "a picture", "surrogate_images": 1, "replay": ["a plant"], "replay_images": 1, "group": "xattn"}
SHORT = {**AMNESIA, "iterations": 1, "batch": 1, "lr": 1e-4}


def plan_of(folder, **changes):
    sa = {"eraser": "selective-amnesia", "preset": False, "settings": SHORT, "fisher": "what-stays"}
    plan = {
        "grid": {"method": ["sa", "sa-gentle"], "split": ["a", "c"], "seed": [0]},
        "method": {"sa": sa, "sa-gentle": {**sa, "settings": {**SHORT, "lamb": 1000.0}}},
        "fisher": {"what-stays": WISH},
    }
    return tiny_plan(folder, **deepcopy({**plan, **changes}))


def of_kind(plan, kind):
    return [job for job in jobs_of(plan) if isinstance(job, kind)]


def test_rows_splits_and_seeds_share_one_job_whose_key_counts_in_theirs(tmp_path):
    plan = plan_of(tmp_path, grid__seed=[0, 1], memory=True)
    fishers, erasures = of_kind(plan, FisherJob), of_kind(plan, EraseJob)
    assert len(fishers) == 1
    assert len(erasures) == 10, "two rows, two splits, two seeds, and a count of bytes for each row"
    assert all(job.fisher == fishers[0].key and fishers[0] in job.upstream for job in erasures)
    assert fishers[0].cost == Cost(trained=3 * 2)
    assert FisherJob.from_json(json.loads(json.dumps(fishers[0].as_json()))).key == fishers[0].key
    trainings = [job for job in erasures if not isinstance(job, MemoryJob)]
    assert {job.cost for job in trainings} == {Cost(trained=2)}, "the pass is not foreseen a second time"
    again = of_kind(plan_of(tmp_path, fisher__again={**WISH}, method__sa__fisher="again"), FisherJob)
    assert [job.key for job in again] == [fishers[0].key], "what it is called is no part of a key"
    other = of_kind(plan_of(tmp_path, fisher={"what-stays": {**WISH, "timesteps": 3}}), (FisherJob, EraseJob))
    assert not {job.key for job in other} & {job.key for job in (*fishers, *erasures)}


def test_a_method_without_one_keeps_its_key(tmp_path):
    """What was stored before plans knew of Fisher information is found."""
    alone = plan_of(tmp_path, fisher={}, method__sa__fisher=None, **{"method__sa-gentle__fisher": None})
    assert all("fisher" not in job.as_json() for job in of_kind(alone, EraseJob))


def test_a_plan_makes_it_erases_with_it_and_tells_what_it_took(tmp_path):
    plan = plan_of(tmp_path)
    assert main([*bench_words(plan), "--quiet"]) == 0
    at = store_of(plan)
    job, images = of_kind(plan, FisherJob)[0], of_kind(plan, WantedJob)
    result = job.result(at)
    made = next(one for one in images if one in job.upstream)
    assert result["cost"] == dataclasses.asdict(job.cost + made.cost), "as foreseen, with the images"
    assert result["seconds_of_images"] == made.result(at)["seconds"] > 0, "as its cost counts them"
    told = read_fisher(job.folder(at) / FISHER).about
    assert (told["given"], told["images"], told["timesteps"]) == (False, 3, 2)
    summary = read_rows(tmp_path / "out" / "summary.jsonl")
    spent = {r["method"]: r["fisher_equivalents"] for r in summary if "fisher_equivalents" in r}
    assert spent == dict.fromkeys(("sa", "sa-gentle"), (job.cost + made.cost).equivalents)
    for erasure in of_kind(plan, EraseJob):
        edit = load_edit(erasure.folder(at) / "edit.safetensors")
        provenance = edit.provenance
        assert provenance.settings["fisher"] == f"{job.folder(at).name}/{FISHER}", "wherever the store lies"
        assert provenance.images["fisher"]["prompts"] == ["a picture", "a plant"]
        assert not provenance.images["fisher"]["given"]
        assert erasure.result(at)["cost"]["trained"] == erasure.cost.trained


def test_a_killed_pass_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, killed = plan_of(tmp_path / "whole"), plan_of(tmp_path / "killed")
    for plan in (whole, killed):
        of_kind(plan, WantedJob)[0].finish(store_of(plan))
    first = of_kind(whole, FisherJob)[0]
    first.finish(store_of(whole))

    monkeypatch.setattr("expunge.store.checkpoints.SECONDS", 0.0)
    monkeypatch.setattr("expunge.store.checkpoints.Checkpoints.due", lambda self: True)
    seen, add = [], Estimate.add

    def until(self, number, shot):
        if number == 2 and 2 not in seen:
            seen.append(number)
            raise KeyboardInterrupt
        seen.append(number)
        return add(self, number, shot)

    monkeypatch.setattr(Estimate, "add", until)
    job, at = of_kind(killed, FisherJob)[0], store_of(killed)
    with pytest.raises(KeyboardInterrupt):
        job.finish(at)
    assert job.result(at) is None
    result = job.finish(at)
    assert seen == [0, 1, 2, 1, 2], "from the checkpoint before the last update on, as erasures do"
    assert result["cost"]["trained"] >= job.cost.trained
    same = [read_fisher(j.folder(w) / FISHER).tensors for j, w in ((first, store_of(whole)), (job, at))]
    assert all((same[0][name] == same[1][name]).all() for name in same[0])
    assert first.result(store_of(whole))["fisher"] == result["fisher"]
    assert [p for p in job.folder(at).iterdir() if p.name.startswith(".")] == []


def test_a_checkpoint_that_is_damaged_is_begun_anew(tmp_path):
    plan = plan_of(tmp_path)
    of_kind(plan, WantedJob)[0].finish(store_of(plan))
    job, at = of_kind(plan, FisherJob)[0], store_of(plan)
    left = job.folder(at).with_name(f".{job.folder(at).name}.partial")
    left.mkdir()
    (left / ".resume.json").write_text("{}")
    (left / f".{FISHER}.resume").write_text("no checkpoint")
    (left / FISHER).write_text("half a file")
    assert job.finish(at)["images"] == 3


ROWS = {"sa": {"eraser": "selective-amnesia", "preset": False, "settings": SHORT, "fisher": "what-stays"}}


def test_what_a_method_keeps_decides_whether_a_prompt_names_its_target_not_what_the_pass_keeps(tmp_path):
    """As the eraser will: it is told the method's list, and refuses after the pass was paid for."""
    one = {"grid__method": ["sa"], "grid__split": ["a"]}
    both = {**WISH, "replay": ["a hot dog", "a picture"]}
    kept = {**ROWS["sa"], "retain": ["hot dog"]}
    expanded(checked(read_plan(plan_of(tmp_path, **one, fisher={"what-stays": both}, method={"sa": kept}))))
    wish = {**WISH, "replay": ["a picture"], "retain": ["hot dog"]}
    with pytest.raises(ExpungeError, match="dog', which names the target 'dog' of method 'sa'"):
        checked(read_plan(plan_of(tmp_path, **one, fisher={"what-stays": wish}, method=ROWS)))
    with pytest.raises(ExpungeError, match="method 'sa' keeps 'hot dog', which no image of fisher 'what-stays' shows"):
        checked(read_plan(plan_of(tmp_path, **one, method={"sa": {**kept, "settings": {**SHORT, "gamma": 0.0}}})))
    assert of_kind(plan_of(tmp_path, **one, method={"sa": kept}), FisherJob), "what is replayed shows it"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method__sa__fisher": "none"}, "fisher of method 'sa'"),
        (
            {"method__uce": {"eraser": "uce", "fisher": "what-stays"}},
            "holds to fisher 'what-stays', but uce takes none",
        ),
        ({"method__sa__order": "sequential"}, "each step is on another model"),
        ({"method__sa__settings__fisher": "f.safetensors"}, "and the file 'f.safetensors': expected one of them"),
        ({"method__sa__settings__lamb": 0.0}, "with lamb 0, which does not use it"),
        (
            {"fisher__what-stays__replay": ["a dog"]},
            "is of images with the prompt 'a dog', which names the target 'dog'",
        ),
        ({"fisher__what-stays__timesteps": 0}, "fisher's timesteps is 0"),
        ({"fisher__what-stays__steps": 1}, "setting of fisher 'what-stays'"),
        ({"fisher__what-stays__timesteps": 1001}, "1001 timesteps of a model with 1000"),
        ({"fisher__what-stays__group": "xattn-strict"}, "trains 'xattn', and fisher 'what-stays' is of 'xattn-strict'"),
        ({"method__sa": {"edits": ["e.safetensors"], "fisher": "what-stays"}}, "finished edits and fisher"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(tmp_path, changes, expected):
    with pytest.raises(ExpungeError, match=expected):
        expanded(checked(read_plan(plan_of(tmp_path, **changes))))
