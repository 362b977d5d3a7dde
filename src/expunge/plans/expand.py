"""A checked plan becomes measurements: each a job with the jobs it stands on, and its place in the table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, final

from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.eraser import settings_of
from expunge.core.errors import ExpungeError
from expunge.jobs import AnalyseJob, EraseJob, GenerateJob, Job, MeasureJob, Workspace
from expunge.jobs.workspace import IMAGES
from expunge.plans.check import RUNS
from expunge.plans.erasures import SAMPLING, TRAINING, Erasure, Erasures, Models, Step
from expunge.plans.images import Images
from expunge.plans.opened import OpenedPlan
from expunge.plans.plugins import PlannedAnalysis, PlannedMetric
from expunge.plans.schema import ORIGINAL, precision_of
from expunge.results.group import MEMORY, SET, Group
from expunge.settings import presets


@final
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A job whose numbers the table has, and where."""

    job: Job
    method: str
    split: str
    seed: int
    """Training seed."""
    group: Group
    variant: str = ""
    """How a metric, an attack or an analysis differs from its defaults."""
    run: int = 0
    """Which run of an attack it is of."""

    @property
    def images(self) -> GenerateJob | None:
        """The job whose images are measured; None for an analysis, which draws its own."""
        made = (up for up in self.job.upstream if isinstance(up, GenerateJob))
        return next((up for up in made if isinstance(self.job, MeasureJob) and up.key == self.job.images), None)

    @property
    def folder(self) -> str:
        """Where these images are in any store, from its folder on, as records say it; empty where no job made images."""
        images = self.images
        return "" if images is None else (images.folder(Workspace(store=Path())) / IMAGES).as_posix()


@final
@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A row of the grid on one split and training seed."""

    method: str
    split: str
    seed: int
    targets: list[str]
    kept: list[str]
    edit: Erasure | None
    """None for the model as it is."""

    def of(self, job: Job, group: Group, variant: str = "", run: int = 0) -> Measurement:
        """A measurement of it."""
        place: dict[str, Any] = {"method": self.method, "split": self.split, "seed": self.seed}
        return Measurement(job=job, group=group, variant=variant, run=run, **place)


def expanded(read: OpenedPlan, device: str = "cpu") -> list[Measurement]:
    """What the plan measures, each with the jobs it stands on.

    Raises:
        ExpungeError: for a precision or a parameter group that the model does not have.
    """
    models = Models(read, device)
    for dtype in (read.image_dtype, *filter(None, map(precision_of, read.plan.grid.method))):
        models.identity(dtype)
    for other in read.plan.other_models:
        models.check_other(other, read.image_dtype)
    for eraser in (*read.erasers.values(), *read.fresh.values()):
        eraser.check(models.backbone)
    _check_paired(read, models)
    for attack, split in product(read.attacks, read.chosen):
        for built in attack.runs:
            built.check([Concept(name=target) for target in read.splits[split]])
    return list(_Expansion(read, models).measurements())


def _check_paired(read: OpenedPlan, models: Models) -> None:
    """Refuse methods that would do nothing, since no pair of predictions is made."""
    distilled, given = models.backbone.supports("distilled"), read.plan.true_cfg
    if given is not None and not distilled:
        raise ExpungeError(
            f"plan's true_cfg {given:g} for a {read.kind} model, which makes pairs anyway: expected guidance"
        )
    name, scale = ("true_cfg", models.true_cfg) if distilled else ("guidance", models.sampling[0])
    for row in read.need_pairs:
        if scale <= 1:
            raise ExpungeError(
                f"method '{row}' acts through a pair of predictions, and none is made at {name} {scale:g}: expected more than 1"
            )


@final
class _Expansion:
    """Makes the measurements of a plan, in the order of its table."""

    def __init__(self, read: OpenedPlan, models: Models) -> None:
        self._read, self._plan, self._models = read, read.plan, models
        self._erasures, self._images = Erasures(read, models), Images(read, models)

    def measurements(self) -> Iterator[Measurement]:
        """All of them: row by row, split by split, seed by seed."""
        grid = self._plan.grid
        for name, split, seed in product(grid.method, self._read.chosen, grid.seed):
            targets = list(self._read.splits[split])
            kept = self._read.kept(targets)
            edit = self._erasures.of(name, targets, kept, seed) if name in self._plan.method else None
            cell = _Cell(method=name, split=split, seed=seed, targets=targets, kept=kept, edit=edit)
            # nothing but attacks that draw depends on the seed of what is not trained
            once = self._erasures.trained(name) or seed == grid.seed[0]
            if once:
                yield from self._shown(cell)
            if precision_of(name) is not None:
                continue
            yield from self._attacked(cell, once)
            if not once:
                continue
            if edit is not None:
                if self._plan.method[name].order == "sequential":
                    yield from self._between(cell, edit)
                for control in self._read.controls(name, targets):
                    yield from self._recoveries(cell, edit, control)
            yield from self._analysed(cell)

    def _shown(self, cell: _Cell) -> Iterator[Measurement]:
        """Measurements of the plan's own set and of further ones; and, once a method, what its erasure takes of memory."""
        first = (cell.split, cell.seed) == (self._read.chosen[0], self._plan.grid.seed[0])
        step = None if cell.edit is None else next(iter(cell.edit.steps), None)
        if isinstance(step, EraseJob) and self._plan.memory and first:
            yield cell.of(self._erasures.memory(step), MEMORY)
        dtype = precision_of(cell.method)
        images = self._images.of(self._read.part, self._plan.count, cell.edit, dtype=dtype)
        yield from self._measured(cell, SET, images, cell.targets, cell.kept, against=self._against(images, cell))
        gone = {*cell.targets, *self._read.words(cell.targets)}
        for more in self._read.more:
            images = self._images.of(more.part, more.images, cell.edit, dtype=dtype)
            targets = [c for c in more.concepts if c in gone]
            kept = [c for c in more.concepts if c not in gone]
            against = self._against(images, cell)
            yield from self._measured(cell, more.group, images, targets, kept, more.metrics, against)

    def _between(self, cell: _Cell, edit: Erasure) -> Iterator[Measurement]:
        """Measurements after each step of a sequential erasure: of each target so far, of the rest, and of each key so far."""
        for done in range(1, len(edit.steps) + 1):
            so_far = edit.after(done)
            gone = [target for erased in so_far.targets for target in erased]
            images = self._images.own(so_far)
            against, group = self._against(images, cell), Group(kind="after", step=done)
            for target in gone:
                yield from self._measured(cell, group, images, [target], [], against=against)
            rest = [c for c in self._read.set.concepts if c not in gone]
            yield from self._measured(cell, group, images, [], rest, against=against)
            if "own" in self._read.controls(cell.method, gone):
                group = Group(kind="key", control="own", step=done)
                for target in gone:
                    images = self._images.recovered(target, so_far, "own", so_far.step_of(target))
                    yield from self._measured(cell, group, images, [target], [])

    def _against(self, images: GenerateJob, cell: _Cell) -> dict[str, GenerateJob]:
        """What a row's images are compared with, by whose they are: on equal seeds, and its own on other seeds."""
        against = {"original": self._images.others(images, elsewhere=cell.method == ORIGINAL)}
        if self._plan.reference:
            reference = Erasure(steps=(), targets=(), model=self._plan.reference)
            own = cell.edit is not None and cell.edit.model == self._plan.reference
            against["reference"] = self._images.others(images, reference, elsewhere=own)
        return against

    def _attacked(self, cell: _Cell, once: bool) -> Iterator[Measurement]:
        """Measurements of the targets under each run of each attack: against the edit, or the original.

        Of a row that is the same with every seed, only attacks that draw are run again: ``once`` tells the first of its seeds.
        """
        for attack in self._read.attacks:
            each = self._plan.control_count if attack.each is None else attack.each
            for group, runs in attack.on(cell.method):
                for run, built in enumerate(runs):
                    if not once and not built.draws:
                        continue
                    later, draws = RUNS * run, cell.seed + RUNS * run
                    images = self._images.attacked(
                        attack.name, built, cell.edit, cell.targets, each, later=later, draws=draws
                    )
                    yield from self._measured(cell, group, images, cell.targets, [], run=run)

    def _recoveries(self, cell: _Cell, edit: Erasure, control: str) -> Iterator[Measurement]:
        """Measurements of the targets with a key: each with its own prompt, whatever words ask for it.

        (A class has a prompt for each of its words, so there they go where a text names one.)
        """
        for target in cell.targets:
            if control == "fresh":
                for updates, eraser in self._read.fresh.items():
                    key = self._erasures.fresh_key(eraser, edit, cell.targets, cell.seed)
                    images = self._images.recovered(target, edit, control, key)
                    group = Group(kind="key", control="fresh", step=updates)
                    yield from self._measured(cell, group, images, [target], [])
                continue
            images = self._images.own(edit) if control == "none" else self._keyed(cell, edit, control, target)
            yield from self._measured(cell, Group(kind="key", control=control), images, [target], [])

    def _keyed(self, cell: _Cell, edit: Erasure, control: str, target: str) -> GenerateJob:
        """Images of a target with a private key, or what a control makes of it or of the model around it."""
        inside: Erasure | None = edit
        injected, key, prompt = "own", edit.step_of(target), None
        if control == "original":
            inside = None
        elif control == "other seed":
            seeds = self._plan.grid.seed
            after = seeds[(seeds.index(cell.seed) + 1) % len(seeds)]
            injected = control
            key = self._erasures.of(cell.method, cell.targets, cell.kept, after).step_of(target)
        elif control in self._plan.method:
            inside = self._erasures.of(control, cell.targets, cell.kept, cell.seed)
        elif control == "neutral":
            prompt = self._plan.neutral
        else:
            injected = control
        return self._images.recovered(target, inside, injected, key, prompt)

    def _measured(
        self,
        cell: _Cell,
        group: Group,
        images: GenerateJob,
        targets: list[str],
        kept: list[str],
        metrics: Sequence[PlannedMetric] | None = None,
        against: Mapping[str, GenerateJob] | None = None,
        run: int = 0,
    ) -> Iterator[Measurement]:
        """Images by each metric that has something to measure there."""
        for metric in self._read.metrics if metrics is None else metrics:
            job = self._images.measured(metric, images, targets, kept, against or {})
            if job is not None:
                yield cell.of(job, group, metric.variant, run)

    def _analysed(self, cell: _Cell) -> Iterator[Measurement]:
        """The analyses that have something to look at here."""
        steps = () if cell.edit is None else cell.edit.steps
        # one after another there is neither one key nor one training
        whole = steps[0] if len(steps) == 1 else None
        own = self._read.erasers.get(cell.method)
        keyed = whole is not None and own is not None and own.has_key
        trained = whole is not None and self._erasures.trained(cell.method)
        able = {"model": True, "edit": bool(steps), "key": keyed, "training": trained}
        for planned in self._read.analyses:
            if able[planned.analysis.needs]:
                job = self._analysis(cell, planned, keyed)
                yield cell.of(job, Group(kind="analysis", name=planned.name), planned.variant)

    def _analysis(self, cell: _Cell, planned: PlannedAnalysis, keyed: bool) -> AnalyseJob:
        """An analysis of a row: of its edits, or of the erasure that made them, run once more."""
        edits: Sequence[Step] = () if cell.edit is None else cell.edit.steps
        again = next(iter(edits)) if planned.analysis.needs == "training" else None
        looked: Sequence[Step] = edits if again is None else ()
        targets, retain = self._read.words(cell.targets), self._read.words(cell.kept)
        guidance, steps = self._models.sampling
        eraser = self._read.erasers.get(cell.method)
        images = planned.analysis.images(len(targets), len(retain), eraser)
        training = None if again is None else {k: v for k, v in again.as_json().items() if k != "model"}
        return AnalyseJob(
            upstream=tuple(looked) if again is None else again.upstream,
            cost=Cost(forward=self._models.evaluations(guidance, steps, self._models.true_cfg) * images)
            + (again.cost if again else Cost()),
            memory=self._models.memory(TRAINING if again else SAMPLING),
            analysis=planned.name,
            version=planned.analysis.version,
            settings=settings_of(planned.analysis),
            judge=planned.judge,
            targets=targets,
            retain=retain,
            prompts=[list(pair) for pair in self._read.prompts() if pair[1] in (*targets, *retain)],
            first_seed=self._read.part.seed,
            guidance=guidance,
            steps=steps,
            true_cfg=self._models.true_cfg,
            template=presets.prompt(self._models.backbone),
            generates=self._models.draws,
            part=self._plan.part,
            edits=[step.key for step in looked],
            key_job=looked[0].key if looked and keyed else None,
            training=training,
            **self._models.named(
                self._plan.dtype if again else self._read.image_dtype, "" if cell.edit is None else cell.edit.model
            ),
        )
