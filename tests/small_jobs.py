"""Jobs of a tiny model, for executors: images in two steps, an erasure; and who is told of them."""

from pathlib import Path

import torch

from expunge import backbones
from expunge.core.cost import Cost
from expunge.jobs import EraseJob, GenerateJob, Job, Workspace, in_order
from expunge.jobs.workspace import RESULT
from expunge.store import load_edit, read_json


class Log:
    """What began and ended, and how many ran at a time."""

    def __init__(self):
        self.order: list[str] = []
        self.most = 0
        self.together: list[set[str]] = []
        self._now: set[str] = set()

    def started(self, job: Job):
        self.order.append(job.key)
        self._now.add(job.key)
        self.together.append(set(self._now))
        self.most = max(self.most, len(self._now))

    def finished(self, job: Job, result):
        assert result["seconds"] >= 0
        self._now.remove(job.key)


def a_model(folder: Path) -> dict[str, str]:
    return {"model": str(folder), "model_sha256": backbones.load(str(folder)).identity(), "dtype": "float32"}


def images(folder: Path, seed: int, edits: tuple[EraseJob, ...] = (), **changes) -> GenerateJob:
    """Two images of a tiny model in two steps."""
    fields = {
        "upstream": edits,
        "cost": Cost(forward=8),
        "version": 1,
        "prompts": [["a church", "church"]],
        "count": 2,
        "seed": seed,
        "guidance": 3.0,
        "steps": 2,
        "part": "test",
        "edits": [edit.key for edit in edits],
        "control": None,
        "key_job": None,
        "only": None,
        **a_model(folder),
        **changes,
    }
    return GenerateJob(**fields)


def an_erasure(folder: Path) -> EraseJob:
    return EraseJob(
        eraser="uce",
        version=1,
        settings={},
        targets=["church"],
        retain=[],
        seed=0,
        salt="",
        **a_model(folder),
    )


def some_jobs(folder: Path) -> list[Job]:
    """An erasure with images on it, and two sets of images that stand on nothing."""
    edited = images(folder, 7, (an_erasure(folder),))
    return in_order([edited, images(folder, 1), images(folder, 2)])


def assert_alike(jobs: list[Job], one: Workspace, other: Workspace) -> None:
    """What two stores have of jobs is the same to the last bit, times aside."""
    for job in jobs:
        here, there = job.folder(one), job.folder(other)
        files = sorted(path.relative_to(here) for path in here.rglob("*.*"))
        assert files == sorted(path.relative_to(there) for path in there.rglob("*.*"))
        for file in files:
            if file.suffix == ".png":
                assert (here / file).read_bytes() == (there / file).read_bytes()
            elif file.suffix == ".safetensors":
                ours, theirs = load_edit(here / file).tensors(), load_edit(there / file).tensors()
                assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})
        both = [read_json(at / RESULT) for at in (here, there)]
        assert both[0]["computed_with"] == both[1]["computed_with"]
        assert both[0]["computed_with"]["threads"] == 1
        assert both[0]["cost"] == both[1]["cost"]
