"""Fisher: a model and images of what should stay in; how much each parameter matters to them out, in a file."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch

from expunge.core.backbone import Backbone
from expunge.core.cost import Cost
from expunge.core.edit import fingerprints, plain
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, check_counts
from expunge.core.query import Shot
from expunge.maths.fisher import REPLAY, SCENES, Estimate, Fisher, check_prompts, replayed
from expunge.maths.training import trainable
from expunge.stages import resume, wanted
from expunge.store import Checkpoint, Checkpoints, reserved, save_fisher

VERSION = 1
"""Raised when the same wish begins to give another diagonal."""


@final
@dataclass(frozen=True, kw_only=True)
class Wish:
    """What Fisher information is wanted; the defaults are `SelectiveAmnesia`'s, which makes the same."""

    group: str = "full"
    """Parameters that it is of."""
    replay: tuple[str, ...] = SCENES
    """Prompts of what should stay."""
    retain: tuple[str, ...] = ()
    """Words of what should stay."""
    retain_prompt: str = "a photo of {}"
    """The phrase that these are put into."""
    count: int = 5000
    """Images of these prompts, in turn, if none are given."""
    images: int = 5000
    """How many of them are looked at."""
    timesteps: int = 1000
    """Timesteps of each."""
    rows: int = 8
    """How many of these at a time."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts("fisher", count=self.count, images=self.images, timesteps=self.timesteps, rows=self.rows)

    def cost(self) -> Cost:
        """What the pass will cost, without making the images."""
        return Cost(trained=min(self.count, self.images) * self.timesteps)

    def check(self, backbone: Backbone) -> None:
        """Refuse what the model has not.

        Raises:
            ExpungeError: for an unknown group, or more timesteps than the model has.
        """
        trainable(backbone, self.group)
        if self.timesteps > backbone.training_timesteps:
            raise ExpungeError(
                f"{self.timesteps} timesteps of a model with {backbone.training_timesteps}: expected no more"
            )

    def prompts(self) -> list[str]:
        """The prompt of each image that the model makes."""
        return replayed(self.replay, self.retain, self.retain_prompt, self.count)


@final
@dataclass(frozen=True, kw_only=True)
class Made:
    """What was written."""

    file: Path
    id: str
    images: int
    parameters: int
    cost: Cost
    """Of the pass and, unless they were given, of the images."""
    seconds: float
    """Of the pass; of the images too, where it made them."""


def make(
    backbone: Backbone,
    wish: Wish,
    out: Path,
    *,
    images: Path | None = None,
    overwrite: bool = False,
    go_on: bool = False,
    anew: bool = False,
    on_image: Callable[[int], None] | None = None,
) -> Made:
    """Write the Fisher information of a model, as it stands, into the file ``out``.

    Args:
        backbone: the model, with the edits that it carries.
        wish: of what.
        out: the file.
        images: a user's own images with their prompts, or what `wanted.make` made for this very pass: these count as made by
            the model, with their cost. The model makes them if not given.
        overwrite: replace an earlier file.
        go_on: go on from the checkpoint that a killed run of the same left beside ``out``, if there is one.
        anew: begin anew where that is damaged, or of another run, and do not refuse it.
        on_image: called after every image with 1.

    Raises:
        ExpungeError: for an unknown group, more timesteps than the model has, or images without prompts.
    """
    wish.check(backbone)
    names = trainable(backbone, wish.group)
    points = Checkpoints(out.parent / f".{out.name}.resume", go_on)
    with reserved(out, overwrite):
        earlier = _earlier(points, resume.of_fisher(backbone, asdict(wish), images), anew)
        start, before = time.perf_counter(), backbone.cost
        task, made = _task(backbone, wish, images)
        shown = task.images[REPLAY][: wish.images]
        estimate, first = Estimate(backbone, names, task, wish.timesteps, wish.rows), 0
        if earlier is not None:
            estimate.load(earlier.state)
            first, before, start = int(earlier.state["next"]), before - earlier.cost, start - earlier.seconds
        for number in range(first, len(shown)):
            estimate.add(number, shown[number])
            if on_image is not None:
                on_image(1)
            due = points.due()
            spent = {"cost": backbone.cost - before, "seconds": time.perf_counter() - start}
            state = {**estimate.state(), "next": torch.tensor(number + 1)} if due else {}
            points.add(Checkpoint(salt="", **spent, state=state) if due else None)
        diagonal = {plain(name): t for name, t in estimate.mean(len(shown)).items()}
        seconds, shown_cost = round(time.perf_counter() - start, 3), Cost() if made is None else made.cost
        cost = backbone.cost - before + shown_cost
        about = {
            **_about(backbone, wish, names, shown),
            "given": images is not None and made is None,
            "cost": asdict(cost),
            "seconds": round(seconds + (0.0 if made is None else made.seconds), 3),
        }
        told = save_fisher(Fisher(diagonal, about), out, overwrite)
        points.end()
    parameters = sum(t.numel() for t in diagonal.values())
    return Made(file=out, id=told, images=len(shown), parameters=parameters, cost=cost, seconds=seconds)


def _earlier(points: Checkpoints, of: str, anew: bool) -> Checkpoint | None:
    """Where an earlier run of the same was, if there is one to go on with."""
    try:
        return points.begin(of)
    except ExpungeError:
        if not anew:
            raise
        points.end()
        return None


def _task(backbone: Backbone, wish: Wish, images: Path | None) -> tuple[Task, wanted.Made | None]:
    """The images of a pass, each with its prompt; and what those took that were made for it before."""
    needs, given = {REPLAY: wish.prompts()}, {} if images is None else {REPLAY: images}
    bare = Task(targets=(), retain=wish.retain, seed=wish.seed)
    task = wanted.attached(backbone, bare, needs, given)
    check_prompts(task.images[REPLAY])
    return task, wanted.own(backbone, task, needs, given).get(REPLAY)


def _about(backbone: Backbone, wish: Wish, names: Sequence[str], shown: Sequence[Shot]) -> dict[str, Any]:
    """What a file says of the model and the images."""
    return {
        "base_sha256": fingerprints({plain(name): t for name, t in backbone.tensors(names).items()}),
        "model": backbone.name,
        "family": backbone.family,
        "edits": [edit.id for edit in backbone.edits],
        "group": wish.group,
        "images": len(shown),
        "prompts": list(dict.fromkeys(shot.prompt for shot in shown)),
        "timesteps": wish.timesteps,
        "seed": wish.seed,
        "expunge": version("expunge"),
    }
