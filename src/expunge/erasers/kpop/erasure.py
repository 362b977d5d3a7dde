"""KPOP's loop: knowledge moves into the prompts, then out of the model."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.concept import phrases
from expunge.core.eraser import Step, Task
from expunge.core.errors import ExpungeError
from expunge.core.texts import empty_is_unconditional
from expunge.erasers.kpop.transfer import Transfer
from expunge.maths.retaining import Kept, Retaining, retained
from expunge.maths.training import Learned, mse, numbers, pace, trainable
from expunge.maths.trajectories import Points

if TYPE_CHECKING:
    from expunge.erasers.kpop import KPOP


class Frozen(NamedTuple):
    """What the original model predicts at an update's points."""

    target: Float[Tensor, "b c h w"] | None
    """For the target: what target and prompt together should still give. None where no prompt is kept."""
    goal: Float[Tensor, "b c h w"]
    """What the target should become."""


@final
class Erasure:
    """One erasure: the model's texts, the student, the prompts and where points come from."""

    def __init__(self, method: "KPOP", backbone: Backbone, task: Task) -> None:
        self.method, self.backbone, self.task = method, backbone, task
        if not task.retain and method.retain_random not in (0.0, 1.0):
            raise ExpungeError(
                f"kpop's retain_random is {method.retain_random} with no word to retain: expected 1 (random texts alone) or 0"
            )
        if task.retain and method.retain_random == 1.0:
            raise ExpungeError(
                "kpop's retain_random is 1 with words to retain, which it would never keep: expected less"
            )
        neutrals = [method.neutral if t.anchor is None else t.anchor for t in task.targets]
        ways = len(method.templates)
        with torch.no_grad():
            self.null = backbone.unconditional()
            self.neutral = backbone.encode([n for n in neutrals for _ in range(ways)])
            self.empty = not any(neutrals) and empty_is_unconditional(backbone)
            kept = [p for word in task.retain for p in phrases(method.templates, word)]
            self.retain = backbone.encode(kept) if kept else None
        self.keeping = Retaining(backbone, task, self.retain, method.retain_random)
        self.transfer = Transfer(method, backbone, task)
        self.targets = self.transfer.targets
        self.origin = backbone.tensors(trainable(backbone, method.group))
        self.student = Learned(self.origin, method.lr)
        points = method.iterations * method.batch
        also = self.neutral if method.goal == "neutral" and not self.empty else None
        self.source = method.sampling.source(backbone, self.targets, self.null, task, "kpop", points, also)
        self.retain_source = None
        if self.retain is not None and method.retain_points == "own":
            self.retain_source = method.sampling.source(backbone, self.retain, self.null, task, "kpop retain", points)

    def steps(self, resume: Mapping[str, Tensor] | None) -> Iterator[Step]:
        """Transfer, then remove, over and over."""
        first = 0
        if resume is not None:
            self.student.load("student", resume)
            self.transfer.learned.load("prompt", resume)
            first = int(resume["next"])
        for index in range(first, self.method.iterations):
            with self.method.sampling.sampled_from(self._student()):
                points = self.source.draw(index, self.method.batch)
            frozen = self._frozen(points)
            losses: dict[str, Tensor] = {}
            if frozen.target is not None and self.method.keep == "prompt":
                with self._student():  # which does not learn here
                    losses["transfer"] = self.transfer.learn(index, points, frozen.target)
            losses |= self._remove(index, points, frozen, self._kept(index, points))
            yield Step(
                index=index,
                edit=lambda: self.backbone.edit_of(self.student.values()),
                losses=numbers(losses),
                state=lambda index=index: self._state(index + 1),
                key=lambda edit: self.transfer.key((*edit.requires, edit.id)),
                warnings=self.transfer.warnings if self.method.keep == "prompt" else list,
            )

    @torch.no_grad()
    def _frozen(self, points: Points) -> Frozen:
        """The original's predictions; those that the trajectory left behind cost nothing."""
        ask, esd = self.backbone.predict, self.method.goal == "esd"
        e_c, goal = points.cond, points.null
        if e_c is None and (self.method.prompted or esd):
            e_c = ask(points.x, points.t, self.targets.rows(points.concept))
        if esd and goal is None:
            goal = ask(points.x, points.t, self.null)
        elif goal is None or not (esd or self.empty):
            goal = points.also
            if goal is None:
                goal = ask(points.x, points.t, self.neutral.rows(points.concept))
        if esd and e_c is not None:
            goal = goal - (e_c - goal)
        return Frozen(e_c if self.method.prompted else None, goal)

    def _student(self) -> AbstractContextManager[None]:
        """The model as far as it is trained."""
        return self.backbone.weights(self.student.values())

    def _pace(self, index: int) -> float:
        return pace(self.method.decay, index, self.method.iterations)

    @torch.no_grad()
    def _kept(self, index: int, points: Points) -> Kept | None:
        """A retained word or a random text for each point, or points of the retained words' own."""
        if self.retain_source is None or self.retain is None:
            return self.keeping.at(index, points)
        with self.method.sampling.sampled_from(self._student()):
            where = self.retain_source.draw(index, self.method.batch)
        cond = self.retain.rows(where.concept)
        return Kept(where, cond, self.backbone.predict(where.x, where.t, cond) if where.cond is None else where.cond)

    def _remove(self, index: int, points: Points, frozen: Frozen, kept: Kept | None) -> dict[str, Tensor]:
        """Eq. 7, with the retain term if there is one: the student learns, the prompts do not."""
        method, ask = self.method, self.backbone.predict
        cond = self.targets.rows(points.concept)
        with self.backbone.weights(self.student.tensors()):
            terms = {"erase": mse(ask(points.x, points.t, cond), frozen.goal)}
            if frozen.target is not None:
                prompted = self.transfer.prompted(points, self.transfer.learned.values())
                terms["keep"] = mse(ask(points.x, points.t, prompted), frozen.target)
            elif method.keep == "weights":
                terms["keep"] = self.student.squared_distance(self.origin)
            if kept is not None:
                terms["retain"] = retained(self.backbone, kept)
            weights = {"erase": 1.0, "keep": method.lamb, "retain": method.retain_weight}
            loss = torch.stack([weights[n] * term for n, term in terms.items()]).sum()
            self.student.descend(loss, self._pace(index))
        return {name: term.detach() for name, term in terms.items()}

    def _state(self, following: int) -> dict[str, Tensor]:
        learned = self.transfer.learned.state("prompt")
        return {**self.student.state("student"), **learned, "next": torch.tensor(following)}
