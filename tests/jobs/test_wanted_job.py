"""Images that methods want are made once, shared by all erasures that want the same, and change nothing."""

from dataclasses import replace
from pathlib import Path

import torch

from expunge import backbones
from expunge.jobs import EraseJob, WantedJob, Workspace
from expunge.jobs.job import seconds_of
from expunge.store import EDIT, load_edit, read_images
from plans_of import jobs_of, tiny_plan

FEW = {"anchor_images": 2, "iterations": 1, "batch": 2}


def an_erasure(folder: Path, **settings) -> EraseJob:
    backbone = backbones.load(str(folder))
    return EraseJob(
        eraser="ca",
        version=1,
        settings={"anchor": "cat", **FEW, **settings},
        targets=["church"],
        retain=[],
        seed=3,
        salt="",
        model=str(folder),
        model_sha256=backbone.identity(),
        dtype="float32",
    )


def test_an_erasure_is_the_same_whether_its_images_were_made_before(folder, tmp_path):
    erasure = an_erasure(folder)
    job = erasure.wanted(backbones.load(str(folder)))
    assert isinstance(job, WantedJob)
    alone, shared = Workspace(store=tmp_path / "alone"), Workspace(store=tmp_path / "shared")
    results = [erasure.finish(alone)]
    made = job.finish(shared)
    results.append(erasure.finish(shared))
    assert made["cost"]["forward"] == job.cost.forward > 0
    images = [shot for path in job.folders(job.folder(shared)).values() for shot in read_images(path)]
    assert len(images) == made["images"] == 2
    ours, theirs = (load_edit(erasure.folder(at) / EDIT) for at in (alone, shared))
    assert all(torch.equal(ours.tensors()[name], tensor) for name, tensor in theirs.tensors().items())
    assert results[0]["cost"] == results[1]["cost"], "the images count as the method's own"
    assert ours.provenance is not None
    assert theirs.provenance is not None
    assert ours.provenance.images == theirs.provenance.images
    assert results[1]["seconds_of_images"] == made["seconds"]
    assert "seconds_of_images" not in results[0]
    assert (
        seconds_of(results[1])
        == results[1]["seconds"] + made["seconds"]
        > seconds_of({"seconds": results[1]["seconds"]})
    )


def test_erasures_share_what_they_want_alike(folder):
    backbone = backbones.load(str(folder))
    one, slower = an_erasure(folder), an_erasure(folder, lr=1e-7)
    keys = {job.wanted(backbone).key for job in (one, slower)}
    assert len(keys) == 1
    for other in (replace(one, seed=4), replace(one, targets=["dog"]), replace(one, on=["a" * 64])):
        assert other.wanted(backbone).key not in keys


def test_a_plan_makes_them_before_the_erasures_that_want_them(tmp_path):
    methods = {
        name: {"eraser": "ca", "settings": {"anchor": "cat", "lr": lr, **FEW}}
        for name, lr in (("a", 1e-5), ("b", 1e-6))
    }
    jobs = jobs_of(tiny_plan(tmp_path, grid__method=["a", "b"], method=methods))
    (wanted,) = [job for job in jobs if isinstance(job, WantedJob)]
    erasures = [job for job in jobs if isinstance(job, EraseJob)]
    assert len(erasures) == 2
    assert all(wanted.key in [up.key for up in job.upstream] for job in erasures)
    assert jobs[0].key == wanted.key


def test_roles_are_told_apart_whatever_their_order(folder, tmp_path):
    """The key of two orders is one; each role's images stay its own."""
    backbone = backbones.load(str(folder))
    one = replace(an_erasure(folder), eraser="few-shot", settings={"shots": 1}, targets=["church", "dog"])
    other = replace(one, targets=["dog", "church"])
    first, second = one.wanted(backbone), other.wanted(backbone)
    assert first.key == second.key
    at = Workspace(store=tmp_path)
    first.finish(at)
    for erasure, job in ((one, first), (other, second)):
        given = erasure.given(at)
        assert given == job.folders(job.folder(at))
        assert {role: {shot.prompt for shot in read_images(path)} for role, path in given.items()} == {
            role: set(job.wishes[role]) for role in ("church", "dog")
        }
