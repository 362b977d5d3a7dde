"""The jobs that show what a plan's methods did: images, attacks that ask for them, and measurements of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from expunge.core.attack import Attack
from expunge.core.concept import Concept, Part
from expunge.core.cost import Cost
from expunge.core.eraser import files_of, settings_of
from expunge.jobs import AttackJob, GenerateJob, Job, MeasureJob
from expunge.plans.erasures import SAMPLING, TRAINING, Erasure, Models
from expunge.plans.opened import OpenedPlan
from expunge.plans.plugins import PlannedMetric
from expunge.stages import measure, resume

OTHER_SEEDS = 500_000
"""How far the seeds are that the original is compared with itself on."""


@final
class Images:
    """Makes the jobs of images of a plan, and what is done with them."""

    def __init__(self, read: OpenedPlan, models: Models) -> None:
        """Of a plan and its model."""
        self._read, self._plan, self._models = read, read.plan, models

    def of(
        self,
        part: Part,
        count: int,
        edit: Erasure | None,
        *,
        dtype: str | None = None,
    ) -> GenerateJob:
        """Images of a part's prompts on their seeds, by the model with an erasure, or as it is."""
        guidance, steps = self._models.sampling
        edits = () if edit is None else edit.steps
        return GenerateJob(
            upstream=edits,
            cost=Cost(
                forward=self._models.evaluations(guidance, steps, self._models.true_cfg) * count * len(part.prompts)
            ),
            memory=self._models.memory(SAMPLING),
            version=self._models.draws,
            prompts=[list(pair) for pair in part.prompts],
            count=count,
            seed=part.seed,
            guidance=guidance,
            steps=steps,
            part=self._plan.part,
            edits=[step.key for step in edits],
            control=None,
            key_job=None,
            only=None,
            strength=1.0 if edit is None else edit.strength,
            seeds=list(part.seeds) or (),
            true_cfg=self._models.true_cfg,
            **self._models.named(dtype or self._read.image_dtype, "" if edit is None else edit.model),
        )

    def own(self, edit: Erasure | None) -> GenerateJob:
        """Images of the plan's own prompts, in the number that the table has."""
        return self.of(self._read.part, self._plan.count, edit)

    def recovered(
        self,
        target: str,
        inside: Erasure | None,
        control: str,
        key: Job,
        prompt: str | None = None,
    ) -> GenerateJob:
        """Images of ``target`` (by its own prompts, if no other is given) with the key of a job."""
        own = self._read.part.where(lambda concept: concept == target)
        asked = own if prompt is None else Part(seed=own.seed, prompts=((prompt, target),))
        images = self.of(asked, self._plan.control_count, inside)
        return replace(
            images,
            upstream=tuple({job.key: job for job in (*images.upstream, key)}.values()),
            control=control,
            key_job=key.key,
            key_room=key.room,
            only=None if target in self._plan.words else target,
        )

    def others(self, images: GenerateJob, model: Erasure | None = None, *, elsewhere: bool = False) -> GenerateJob:
        """The original's images of the same prompts, or another ``model``'s; ``elsewhere`` on other seeds."""
        pairs = tuple((prompt, label) for prompt, label in images.prompts)
        part = Part(seed=images.seed, prompts=pairs, seeds=tuple(images.seeds)).later(OTHER_SEEDS * elsewhere)
        return self.of(part, images.count, model)

    def attacked(
        self,
        name: str,
        attack: Attack[Any],
        edit: Erasure | None,
        targets: list[str],
        count: int,
        later: int,
        draws: int,
    ) -> GenerateJob:
        """Images of what an attack asks, from ``count`` queries a prompt for the targets, on seeds so much ``later``.

        Another model is attacked as an edit of the plan's: to an attacker the plan's model is the original.
        """
        if edit is not None and edit.model:
            edit = self._models.as_edit(edit.model, targets)
        asked = self._read.part.where(lambda concept: concept in targets).later(later)
        plain = self.of(asked, count, edit)
        each_step = self._models.predictions(plain.guidance, plain.true_cfg)
        job = AttackJob(
            upstream=plain.upstream,
            cost=attack.foreseen(len(targets), len(asked.prompts) * count, plain.steps, each_step),
            memory=self._models.memory(TRAINING),
            prompts=plain.prompts,
            count=plain.count,
            seed=plain.seed,
            seeds=plain.seeds,
            true_cfg=plain.true_cfg,
            guidance=plain.guidance,
            steps=plain.steps,
            edits=plain.edits,
            strength=plain.strength,
            attack=name,
            version=attack.version,
            settings=settings_of(attack),
            targets=targets,
            draws=draws,
            generates=self._models.draws,
            files=files_of(attack) or None,
            redefined=resume.redefined(self._models.backbone),
            told_by=measure.told_by(settings_of(attack)) or None,
            **self._models.named(self._plan.dtype),
        )
        images = attack.asks([Concept(name=name) for name in targets], len(asked.prompts) * count)
        cost = Cost(forward=each_step * plain.steps * images)
        return replace(plain, queries_job=job.key, upstream=(*plain.upstream, job), cost=cost)

    def measured(
        self,
        metric: PlannedMetric,
        images: GenerateJob,
        targets: list[str],
        kept: list[str],
        against: Mapping[str, GenerateJob],
    ) -> MeasureJob | None:
        """A metric of images, beside those ``against`` (by whose they are) if it compares; None for nothing to measure."""
        if metric.paired and not against:
            return None  # what a key brings back is not compared
        if not {"targets": targets, "kept": kept, "either": True}[metric.about]:
            return None
        # sets of images are compared on other seeds, the original's own too
        others = against.get(metric.against) if metric.paired else None
        beside = self.others(images, elsewhere=True) if metric.any_reference else others
        return MeasureJob(
            upstream=(images,) if beside is None else (images, beside),
            metric=metric.name,
            version=metric.version,
            settings=metric.settings,
            judge=metric.judge,
            images=images.key,
            targets=targets,
            retain=kept,
            reference=None if beside is None else beside.key,
        )
