"""Plans with another model beside their own: a row that is one, and a reference that every row is compared with."""

import json
import shutil
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from expunge import backbones, testbed
from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.executors import submission
from expunge.jobs import AttackJob, DifferenceJob, EraseJob, GenerateJob, MeasureJob
from expunge.jobs.workspace import IMAGES, QUERIES
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.read import read_plan
from expunge.store.queries import read_queries
from plans_of import bench_words, jobs_of, measurements_of, read_rows, store_of, tiny_plan, tiny_set

OTHER_SEEDS = 500_000


def copied(folder, by):
    """The testbed with other weights, ``by`` so much of their own spread."""
    shutil.copytree(testbed.SHIPPED, folder)
    mark = folder / "expunge.json"
    mark.write_text(json.dumps({k: v for k, v in json.loads(mark.read_text()).items() if k != "parts"}))
    file, draw = next((folder / "unet").glob("*.safetensors")), torch.Generator().manual_seed(0)
    tensors = load_file(file)
    moved = {
        k: t + by * t.float().std().nan_to_num() * torch.randn(t.shape, generator=draw) for k, t in tensors.items()
    }
    save_file({k: t.to(tensors[k].dtype) for k, t in moved.items()}, file)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return copied(tmp_path_factory.mktemp("other") / "retrained", 0.02)


def plan_of(folder, other, **changes):
    plan = {
        "grid": {"method": ["original", "uce", "retrained"], "split": ["a"], "seed": [0, 1]},
        "method": {"uce": {"eraser": "uce"}, "retrained": {"model": str(other)}},
        "reference": str(other),
        "metrics": ["prior-distance", "reference-distance"],
    }
    return tiny_plan(folder, **{k: v for k, v in deepcopy({**plan, **changes}).items() if v is not None})


def images_of(plan):
    """The jobs of images behind each row's distance to the reference: its own, and those that they are compared with."""
    by_key = {job.key: job for job in jobs_of(plan) if isinstance(job, GenerateJob)}
    distances = [
        m for m in measurements_of(plan) if isinstance(m.job, MeasureJob) and m.job.metric == "reference-distance"
    ]
    return {m.method: (by_key[m.job.images], by_key[m.job.reference]) for m in distances}


def test_every_row_is_compared_with_the_reference_on_equal_seeds_and_the_reference_with_itself_elsewhere(
    tmp_path, other
):
    shown = images_of(plan_of(tmp_path, other))
    assert set(shown) == {"original", "uce", "retrained"}
    for row in ("original", "uce"):
        own, beside = shown[row]
        assert own.model == "testbed"
        assert (beside.model, beside.seed, list(beside.edits)) == (str(other), own.seed, [])
        assert beside.model_sha256 != own.model_sha256
        assert beside.key == shown["retrained"][0].key, "the reference's images are made once"
    own, beside = shown["retrained"]
    assert (own.model, beside.model, beside.seed) == (str(other), str(other), own.seed + OTHER_SEEDS)
    assert not [job for job in jobs_of(plan_of(tmp_path, other)) if isinstance(job, EraseJob) and job.eraser != "uce"]


def test_where_the_other_model_lies_is_no_part_of_a_key_and_its_weights_are(tmp_path, other):
    keys = {name: pair[1].key for name, pair in images_of(plan_of(tmp_path, other)).items()}
    moved = shutil.copytree(other, tmp_path / "elsewhere")
    assert {name: pair[1].key for name, pair in images_of(plan_of(tmp_path, moved)).items()} == keys
    nearer = copied(tmp_path / "nearer", 0.01)
    again = {name: pair[1].key for name, pair in images_of(plan_of(tmp_path, nearer)).items()}
    assert not set(again.values()) & set(keys.values())


def test_a_row_without_a_reference_changes_no_other_row(tmp_path, other):
    alone = {j.key for j in jobs_of(tiny_plan(tmp_path, metrics=["esr-psr", "prior-distance"]))}
    beside = {
        j.key
        for j in jobs_of(
            tiny_plan(
                tmp_path,
                metrics=["esr-psr", "prior-distance"],
                grid__method=["original", "uce", "retrained"],
                method__retrained={"model": str(other)},
            )
        )
    }
    assert alone < beside


def test_a_plan_measures_the_distances_and_attacks_the_other_model(tmp_path, other):
    metrics = ["esr-psr", "prior-distance", "reference-distance"]
    plan = plan_of(tmp_path, other, attacks=[{"name": "rounding", "count": 1}], metrics=metrics, grid__seed=[0])
    (difference,) = (job for job in jobs_of(plan) if isinstance(job, DifferenceJob))
    assert (difference.model, difference.file) == ("testbed", str(other))
    attacked = [job for job in jobs_of(plan) if isinstance(job, AttackJob) and list(job.edits) == [difference.key]]
    assert [job.model for job in attacked] == ["testbed"], "to whom the plan's model is the original"
    assert main([*bench_words(plan), "--quiet"]) == 0
    summary = {
        (r["method"], r["metric"]): r for r in read_rows(tmp_path / "out" / "summary.jsonl") if r.get("group") == "set"
    }
    far = summary["retrained", "reference_distance_kept"]["value"]
    near = {row: summary[row, "reference_distance_kept"]["value"] for row in ("original", "uce")}
    assert all(0 < distance < far for distance in near.values()), "other seeds are further than other weights"
    assert summary["retrained", "prior_distance"]["value"] == near["original"], "the same two images, either way round"
    records = read_rows(tmp_path / "out" / "records.jsonl")
    told = {r["provenance"]["reference_model"] for r in records if r["metric"].startswith("reference_distance")}
    assert told == {str(other)}
    theirs = [r for r in records if r["provenance"]["method"] == "retrained"]
    assert {(r["model"], r["provenance"]["group"].startswith("attack: ")) for r in theirs} == {
        (str(other), False),
        ("testbed", True),
    }
    assert all(r["provenance"]["attack"]["edit"] for r in theirs if r["model"] == "testbed"), "its weights are rounded"


@pytest.mark.parametrize("attack", [{"name": "image-to-image", "images": 2}, {"name": "continuation"}])
def test_attacks_on_the_other_model_start_from_the_original_s_pictures_and_steps(tmp_path, other, attack):
    """And its images are those that it would draw itself: whatever differs is in the edit."""
    plan = plan_of(
        tmp_path, other, attacks=[{**attack, "count": 1}], grid__seed=[0], metrics=["esr-psr"], reference=None
    )
    jobs = [job for job in jobs_of(plan) if isinstance(job, AttackJob)]
    own, *rest = sorted(jobs, key=lambda job: len(job.edits))
    theirs = next(job for job in rest if isinstance(job.upstream[0], DifferenceJob))
    assert main([*bench_words(plan), "--quiet"]) == 0
    at = store_of(plan)
    asked = {job.key: read_queries(job.folder(at) / QUERIES).queries for job in (theirs, own)}
    starts = [[q.start.image for q in queries if q.start is not None] for queries in asked.values()]
    assert len(starts[0]) == len(starts[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True)), "what the attacked model could not draw"
    drawn = next(job for job in jobs_of(plan) if isinstance(job, GenerateJob) and job.queries_job == theirs.key)
    with Image.open(sorted((drawn.folder(at) / IMAGES).rglob("*.png"))[0]) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).reshape(-1, 3).int()
    expected = backbones.load(str(other), dtype=drawn.dtype).generate(asked[theirs.key][:1]).pixels[0].reshape(-1, 3)
    assert (pixels - expected).abs().max() <= 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reference": None}, "metric 'reference-distance' in a plan without a reference"),
        ({"metrics": ["prior-distance"]}, "and no metric compares with it: expected reference-distance"),
        ({"reference": "not there"}, "model 'not there' is of kind sd, and the plan's 'testbed' of kind testbed"),
        (
            {"method__retrained__retain": True},
            "method 'retrained' has a model and retain: expected nothing beside the model",
        ),
        ({"method__retrained": {}}, "has no 'eraser': expected one, finished edits, or another model"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, other, changes, expected):
    with pytest.raises(ExpungeError, match=expected):
        expanded(checked(read_plan(plan_of(tmp_path, other, **changes))))


def test_a_job_whose_other_model_changed_is_refused(tmp_path):
    folder = copied(tmp_path / "theirs", 0.01)
    plan = plan_of(tmp_path, folder)
    job = images_of(plan)["original"][1]
    changed = copied(tmp_path / "changed", 0.03)
    with pytest.raises(ExpungeError, match="has changed since the job was planned"):
        GenerateJob.from_json({**job.as_json(), "model": str(changed)}).finish(store_of(plan))


def test_another_model_is_one_edit_for_all_splits_and_one_trained_otherwise_cannot_be_attacked(tmp_path, other):
    attacked = {"attacks": [{"name": "rounding", "count": 1}], "grid__split": ["a", "b"]}
    attacked["metrics"] = ["esr-psr", "reference-distance"]
    jobs = jobs_of(plan_of(tmp_path, other, **attacked))
    assert len({job.key for job in jobs if isinstance(job, DifferenceJob)}) == 1
    velocity = copied(tmp_path / "velocity", 0.01)
    file = velocity / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    drawn = {"method__retrained__model": str(velocity), "reference": str(velocity)}
    expanded(checked(read_plan(plan_of(tmp_path, other, **drawn))))
    with pytest.raises(ExpungeError, match="has prediction_type v_prediction in its scheduler, and 'testbed' epsilon"):
        expanded(checked(read_plan(plan_of(tmp_path, other, **drawn, **attacked))))


def test_results_with_a_row_of_another_model_can_be_submitted(other, tmp_path):
    """Each record is held against the model of its own row."""
    small = {
        "grid": {"method": ["original", "retrained"], "split": ["a"]},
        "method": {"retrained": {"model": str(other)}},
    }
    (tmp_path / "plans").mkdir()
    tiny_set(tmp_path / "three.toml")
    more = {"reference": None, "metrics": ["esr-psr"], "set": str(tmp_path / "three.toml")}
    plan = plan_of(tmp_path / "plans", other, **small, **more)
    (tmp_path / "plans" / "three.toml").unlink()
    assert main([*bench_words(plan), "--store", str(tmp_path / "store"), "--quiet"]) == 0
    results = plan.parent / "out"
    found = submission.check(results, tmp_path / "plans")
    assert {r["model"] for r in found.records} == {"testbed", str(other)}
    rows = read_rows(results / "records.jsonl")
    made = next(r["provenance"]["model_sha256"] for r in rows if r["provenance"]["method"] == "original")
    for row in rows:
        row["provenance"]["model_sha256"] = made
    (results / "records.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    with pytest.raises(ExpungeError, match=f"expected [0-9a-f]{{16}}, that of '{other}' here"):
        submission.check(results, tmp_path / "plans")
