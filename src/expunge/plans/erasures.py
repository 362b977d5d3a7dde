"""The jobs in which a plan's methods erase: edits, the pairs that they learn from, and keys that are learned anew."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, final

from expunge.backbones.pipeline import PipelineBackbone
from expunge.core.backbone import Backbone
from expunge.core.concept import Concept, check_targets
from expunge.core.cost import Cost, predictions
from expunge.core.eraser import Eraser, files_of, settings_of
from expunge.core.errors import ExpungeError
from expunge.jobs import DifferenceJob, EraseJob, FisherJob, FreshKeyJob, GivenJob, MemoryJob, PairsJob, WantedJob
from expunge.jobs.workspace import model
from expunge.maths.fisher import REPLAY
from expunge.maths.training import trainable
from expunge.plans.opened import OpenedPlan
from expunge.plans.schema import Fresh
from expunge.settings import presets
from expunge.stages import fisher, fresh_key, generate, importing, measure, pairs, resume, stopping, wanted
from expunge.store import header_of

SAMPLING, CLOSED_FORM, TRAINING = 1.3, 1.5, 4.0
"""How many times a model's weights jobs may hold: to draw images, to replace some, to train some with an optimizer."""
SALT = "a benchmark's keys are not secret"
"""In the place of a secret, so that a plan gives the same keys every time."""
UPDATES = 3
"""Updates whose memory is counted: optimizers hold their state from the first on."""

Step: TypeAlias = EraseJob | GivenJob | DifferenceJob
"""What makes one of the edits of an erasure."""


@final
@dataclass(frozen=True, kw_only=True)
class Erasure:
    """How a method erases a split: in one step, or one target after another, or each apart; or by being another model."""

    steps: tuple[Step, ...]
    """A sequential method's each on top of those before it; none of another model."""
    targets: tuple[tuple[str, ...], ...]
    """What each step erases."""
    strength: float = 1.0
    """What the steps' edits are attached with."""
    model: str = ""
    """Another model than the plan's."""

    def step_of(self, target: str) -> Step:
        """The step that erases ``target``, whose key brings it back."""
        return next(step for step, erased in zip(self.steps, self.targets, strict=True) if target in erased)

    def after(self, steps: int) -> "Erasure":
        """The first ``steps`` of it."""
        return replace(self, steps=self.steps[:steps], targets=self.targets[:steps])


@final
class Models:
    """The plan's model in the precisions that it is used in."""

    def __init__(self, read: OpenedPlan, device: str = "cpu") -> None:
        """Open the model of the plan when it is first asked for."""
        self._read, self._plan, self._device = read, read.plan, device

    @property
    def backbone(self) -> Backbone:
        """The model that edits are made on."""
        return model(self._plan.model, self._plan.dtype, self._device)

    @cached_property
    def sampling(self) -> tuple[float, int]:
        """Guidance and steps of the plan's images."""
        guidance, steps = presets.generation(self.backbone)
        return (
            guidance if self._plan.guidance is None else self._plan.guidance,
            steps if self._plan.steps is None else self._plan.steps,
        )

    @cached_property
    def true_cfg(self) -> float:
        """Scale of a distilled model's pairs of predictions in the plan's images; 1 where none is made."""
        if self._plan.true_cfg is not None:
            return self._plan.true_cfg
        return presets.true_cfg(self.backbone) if self._read.need_pairs else 1.0

    def evaluations(self, guidance: float, steps: int, true_cfg: float = 1.0) -> int:
        """Evaluations of an image."""
        return self.predictions(guidance, true_cfg) * steps

    def predictions(self, guidance: float, true_cfg: float = 1.0) -> int:
        """Predictions in a step of an image."""
        return predictions(self.backbone.supports("distilled"), guidance, true_cfg)

    @property
    def draws(self) -> int:
        """Version of the images: guidance of 1 or less is none since the second, and all other keys stay as they were."""
        return generate.VERSION + (self.sampling[0] <= 1)

    def identity(self, dtype: str, other: str = "") -> str:
        """Hash of the files of the model, or of an ``other``, in a precision."""
        return model(other or self._plan.model, dtype, self._device).identity()

    def check_other(self, other: str, dtype: str) -> None:
        """Refuse another model whose images are not to be compared with the plan's.

        Raises:
            ExpungeError: if they have another size; or, where it is attacked, if no edit makes the plan's model that one.
        """
        size, own = (model(name, dtype, self._device).image_size for name in (other, self._plan.model))
        if size != own:
            raise ExpungeError(
                f"model '{other}' draws {size} pixels, and '{self._plan.model}' {own}: expected the same"
            )
        rows = [
            name for name, row in self._plan.method.items() if row.model == other and name in self._plan.grid.method
        ]
        if any(list(attack.on(row)) for attack in self._read.attacks for row in rows):
            importing.check_alike(self.backbone, model(other, self._plan.dtype, self._device))

    def as_edit(self, other: str, targets: Sequence[str]) -> Erasure:
        """Another model as an erasure of ``targets`` from the plan's: what the two have that differs."""
        job = DifferenceJob(
            memory=self.memory(TRAINING),  # two models, what differs, and its hash
            file=other,
            file_sha256=self.identity(self._plan.dtype, other),
            **self.named(self._plan.dtype),
        )
        return Erasure(steps=(job,), targets=((*targets,),))

    def memory(self, times: float) -> int:
        """Bytes that a job may take that holds the model's weights so many times, activations counted in."""
        backbone = self.backbone
        return round(times * backbone.weight_bytes) if isinstance(backbone, PipelineBackbone) else 0

    def pictures(self, wishes: Mapping[str, Sequence[str | Sequence[Any]]], seed: int) -> WantedJob:
        """The job of images that the plan's model, as it is, makes by role: of a prompt for each."""
        guidance, steps = presets.generation(self.backbone)
        return WantedJob(
            cost=Cost(forward=presets.image_evaluations(self.backbone) * sum(map(len, wishes.values()))),
            memory=self.memory(SAMPLING),
            version=wanted.VERSION,
            wishes=wishes,
            seed=seed,
            salt="",
            guidance=guidance,
            steps=steps,
            **self.named(self._plan.dtype),
        )

    def named(self, dtype: str, other: str = "") -> dict[str, Any]:
        """What a job says of its model, if not of an ``other``."""
        return {"model": other or self._plan.model, "model_sha256": self.identity(dtype, other), "dtype": dtype}


@final
class Erasures:
    """Makes the erase jobs of a plan, and those that they stand on or that stand for them."""

    def __init__(self, read: OpenedPlan, models: Models) -> None:
        """Of a plan and its model."""
        self._read, self._plan, self._models = read, read.plan, models

    def trained(self, name: str) -> bool:
        """Whether a row is a method that depends on the training seed."""
        return self._read.trained(name)

    def of(self, name: str, targets: list[str], kept: list[str], seed: int) -> Erasure:
        """The steps in which method ``name`` erases ``targets``."""
        method = self._plan.method[name]
        if method.model:
            return Erasure(steps=(), targets=(), model=method.model)
        if method.edits:
            given = tuple(GivenJob(edit=header_of(file)["id"], file=file) for file in method.edits)
            return Erasure(steps=given, targets=tuple((*targets,) for _ in given))
        words = self._read.words(targets) if method.order == "apart" else targets
        parts = [words] if method.order == "joint" else [[word] for word in words]
        each = method.images if isinstance(method.images, tuple) else [method.images] * len(parts)
        steps: list[EraseJob] = []
        for part, given in zip(parts, each, strict=True):
            on = tuple(steps) if method.order == "sequential" else ()
            steps.append(self._step(name, part, kept, seed, on, given))
        return Erasure(steps=tuple(steps), targets=tuple(map(tuple, parts)), strength=method.strength)

    def _step(
        self, name: str, targets: list[str], kept: list[str], seed: int, on: tuple[EraseJob, ...], given: str | None
    ) -> EraseJob:
        """An erasure on top of the erasures ``on``, from the plan's pairs ``given`` if any."""
        method, eraser = self._plan.method[name], self._read.erasers[name]
        words = self._read.words(targets)
        retain = self._read.retained(name, kept)
        check_targets([Concept(name=word) for word in words], retain)
        eraser.check_targets([Concept(name=word) for word in words])
        made = None if given is None else self._pairs(self._plan.pairs[given])
        held = None if method.fisher is None else self._fisher(name, method.fisher)
        job = EraseJob(
            upstream=(*on, *(job for job in (made, held) if job is not None)),
            cost=self._looks(name, len(words)),
            memory=self._models.memory(TRAINING if self.trained(name) else CLOSED_FORM),
            eraser=method.eraser,
            version=eraser.version,
            settings=settings_of(eraser),
            targets=words,
            retain=retain,
            seed=seed if self.trained(name) else self._plan.grid.seed[0],
            salt=SALT if eraser.has_key else "",
            on=[step.key for step in on] or (),
            images=None if made is None else made.key,
            stop=None if method.stop is None else stopping.as_json(method.stop, self._read.kind, words),
            judge=measure.judge_of(settings_of(eraser)),
            files=files_of(eraser) or None,
            fisher=None if held is None else held.key,
            redefined=resume.redefined(self._models.backbone, method.eraser, getattr(eraser, "group", "")),
            **self._models.named(self._plan.dtype),
        )
        job = replace(job, cost=job.cost + job.built().cost(len(words), len(retain)))
        images = job.wanted(self._models.backbone)
        return job if images is None else job.standing_on(*job.upstream, images.standing_on(*on))

    def _looks(self, name: str, words: int) -> Cost:
        """What a method's looks at so many words may cost: all of them, as if nothing stopped it."""
        stop = self._plan.method[name].stop
        if stop is None:
            return Cost()
        updates = getattr(self._read.erasers[name], "iterations", 1)
        return stop.cost(updates, words, presets.image_evaluations(self._models.backbone))

    def memory(self, step: EraseJob) -> MemoryJob:
        """What the first updates of an erasure take of memory."""
        job = MemoryJob.from_json({**step.as_json(), "updates": UPDATES})
        return replace(job, upstream=step.upstream, memory=step.memory)

    def _pairs(self, wish: pairs.Wish) -> PairsJob:
        """The pairs that a method learns from; planned as if the judge accepted each first draw."""
        guidance, steps = self._models.sampling
        judge = pairs.judge_of(wish, self._models.backbone.kind)
        images = wish.count * len(wish.unsafe) * self._models.evaluations(guidance, steps)
        return PairsJob(
            cost=Cost(forward=images + round(images * wish.strength)),
            memory=self._models.memory(SAMPLING),
            version=pairs.VERSION,
            pairs=asdict(wish),
            judge="" if judge is None else judge.identity(),
            guidance=guidance,
            steps=steps,
            generates=self._models.draws,
            **self._models.named(self._plan.dtype),
        )

    def _fisher(self, name: str, of: str) -> FisherJob:
        """The Fisher information that method ``name`` holds to, and the images that it is of.

        Raises:
            ExpungeError: if it lacks parameters that the method trains, or wants more timesteps than the model has.
        """
        backbone, wish = self._models.backbone, self._plan.fisher[of]
        wish.check(backbone)
        group = getattr(self._read.erasers[name], "group", "full")
        if not set(trainable(backbone, group)) <= set(trainable(backbone, wish.group)):
            raise ExpungeError(
                f"method '{name}' trains '{group}', and fisher '{of}' is of '{wish.group}': expected one of all that it trains"
            )
        images = self._models.pictures({REPLAY: wish.prompts()}, wish.seed)
        return FisherJob(
            upstream=(images,),
            cost=wish.cost(),
            memory=self._models.memory(TRAINING),
            version=fisher.VERSION,
            fisher=asdict(wish),
            images=images.key,
            redefined=resume.redefined(backbone, wish.group),
            **self._models.named(self._plan.dtype),
        )

    def fresh_key(self, eraser: Eraser, edit: Erasure, targets: Sequence[str], seed: int) -> FreshKeyJob:
        """A key for all targets, learned anew on the model that ``edit`` left."""
        words = self._read.words(targets)
        return FreshKeyJob(
            upstream=edit.steps,
            cost=eraser.fresh_cost(len(words)),
            memory=self._models.memory(TRAINING),
            eraser=(self._plan.fresh or Fresh()).eraser,
            version=eraser.version,
            stage=fresh_key.VERSION,
            settings=settings_of(eraser),
            targets=words,
            seed=seed,
            edits=[step.key for step in edit.steps],
            **self._models.named(self._plan.dtype),
        )
