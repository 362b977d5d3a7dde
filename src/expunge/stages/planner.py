"""The planner: turns a plan into jobs, each with the jobs it stands on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, final

from expunge.core.backbone import Backbone
from expunge.core.concept import Concept, check_targets
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, settings_of
from expunge.settings import presets
from expunge.stages import generate, jobs, pairs
from expunge.stages.opened import RUNS, Opened
from expunge.stages.plan import (
    ATTACK,
    ORIGINAL,
    Fresh,
    Further,
    PlannedMetric,
    precision_of,
)

SALT = "a benchmark's keys are not secret"
"""In the place of a secret, so that a plan gives the same keys every time."""

OTHER_SEEDS = 500_000
"""How far the seeds are that the original is compared with itself on."""
ATTACKED = ("prompts", "count", "seed", "guidance", "steps", "edits", "strength")
"""What an attack is told of the images that it is to change."""
UPDATES = 3
"""Updates whose memory is counted: optimizers hold their state from the first on."""


@final
@dataclass(frozen=True, kw_only=True)
class Planned:
    """A job with its place in the table."""

    job: jobs.Job
    upstream: tuple["Planned", ...] = ()
    cost: Cost = field(default_factory=Cost)
    method: str = ""
    split: str = ""
    seed: int = 0
    group: str = ""
    """What a measurement is of: ``set``, ``others``, ``memory``, a further set's name, ``after STEP``, or one of `KINDS`."""
    variant: str = ""
    """How a measurement's metric differs from its defaults."""
    run: int = 0
    """Which run of an attack it is of."""

    @cached_property
    def key(self) -> str:
        """The job's content key."""
        return jobs.key(self.job)


@final
@dataclass(frozen=True, kw_only=True)
class Erasure:
    """How a method erases a split: in one step, or one target after another, or each apart."""

    steps: tuple[Planned, ...]
    """Jobs; a sequential method's each on top of those before it."""
    targets: tuple[tuple[str, ...], ...]
    """What each step erases."""
    strength: float = 1.0
    """What the steps' edits are attached with."""

    def step_of(self, target: str) -> Planned:
        """The step that erases ``target``, whose key brings it back."""
        return next(step for step, erased in zip(self.steps, self.targets, strict=True) if target in erased)

    def after(self, steps: int) -> "Erasure":
        """The first ``steps`` of it."""
        return replace(self, steps=self.steps[:steps], targets=self.targets[:steps])


@final
class Planner(Opened):
    """Turns a plan into jobs for one model."""

    @cached_property
    def backbone(self) -> Backbone:
        """The model that edits are made on."""
        return jobs.model(self.plan.model, self.plan.dtype)

    @cached_property
    def _sampling(self) -> tuple[float, int]:
        """Guidance and steps of the plan's images."""
        guidance, steps = presets.generation(self.backbone)
        return (
            guidance if self.plan.guidance is None else self.plan.guidance,
            steps if self.plan.steps is None else self.plan.steps,
        )

    def identity(self, dtype: str) -> str:
        """Hash of the model's files in a precision."""
        return jobs.model(self.plan.model, dtype).identity()

    def planned(self) -> list[Planned]:
        """What the plan measures, each with the jobs it stands on.

        Raises:
            ExpungeError: for a precision or a parameter group that the model does not have.
        """
        for dtype in (self.image_dtype, *filter(None, map(precision_of, self.grid.method))):
            self.identity(dtype)
        for eraser in (*self.erasers.values(), *self.fresh.values()):
            eraser.check(self.backbone)
        return list(self._measurements())

    def _measurements(self) -> Iterator[Planned]:
        chosen = self.grid.split or tuple(self.splits)
        for name, split, seed in product(self.grid.method, chosen, self.grid.seed):
            targets = list(self.splits[split])
            kept = [c for c in self.set.concepts if c not in targets]
            place = {"method": name, "split": split, "seed": seed}
            edit = self._erasure(name, targets, kept, seed) if name in self.methods else None
            once = self._trained(name) or seed == self.grid.seed[0]  # nothing but attacks depends on the seed otherwise
            if once:
                yield from self._shown(edit, targets, kept, place)
            if precision_of(name) is not None:
                continue
            yield from self._attacked(edit, targets, place)
            if not once:
                continue
            if edit is not None:
                if self.methods[name].order == "sequential":
                    yield from self._between(edit, name, place)
                yield from self._recoveries(edit, name, targets, kept, place)
            yield from self._analysed(edit, name, targets, kept, place)

    def _shown(
        self, edit: Erasure | None, targets: list[str], kept: list[str], place: Mapping[str, Any]
    ) -> Iterator[Planned]:
        """Measurements of the plan's own set and of further ones; and, once a method, what its erasure takes of memory."""
        name, chosen = place["method"], self.grid.split or tuple(self.splits)
        first = (place["split"], place["seed"]) == (chosen[0], self.grid.seed[0])
        if edit is not None and self.plan.memory and first:
            job = {**edit.steps[0].job, "room": "memory", "updates": UPDATES}
            yield Planned(job=job, upstream=edit.steps[0].upstream, group="memory", **place)
        own = Further("set", self.set.part(self.plan.part), (*targets, *kept), self.plan.count, self.metrics)
        gone = {*targets, *self.told(targets)}
        for shown in (own, *self.further):
            how = (shown.part.prompts, shown.images, shown.part.seed)
            images = self._images(*how, edit, dtype=precision_of(name), seeds=shown.part.seeds)
            against = self._against(*how, name, shown.part.seeds)
            hit, rest = targets, kept
            if shown is not own:
                hit = [c for c in shown.concepts if c in gone]
                rest = [c for c in shown.concepts if c not in gone]
            yield from self._measured(images, hit, rest, {**place, "group": shown.group}, shown.metrics, against)

    def _between(self, edit: Erasure, name: str, place: Mapping[str, Any]) -> Iterator[Planned]:
        """Measurements after each step of a sequential erasure: of each target so far, of the rest, and of each key so far."""
        for done in range(1, len(edit.steps) + 1):
            so_far = edit.after(done)
            gone = [target for erased in so_far.targets for target in erased]
            images = self._images(self.prompts(), self.plan.count, self._seed(), so_far)
            against = self._against(self.prompts(), self.plan.count, self._seed(), name)
            group = {**place, "group": f"after {done}"}
            for target in gone:
                yield from self._measured(images, [target], [], group, against=against)
            yield from self._measured(
                images, [], [c for c in self.set.concepts if c not in gone], group, against=against
            )
            for target in gone if "own" in self.controls(name, gone) else ():
                images = self._recovered(target, so_far, "own", so_far.step_of(target))
                yield from self._measured(images, [target], [], {**place, "group": f"key: own after {done}"})

    def _against(
        self, prompts: Sequence[tuple[str, str]], count: int, seed: int, name: str, seeds: Sequence[int] = ()
    ) -> Planned:
        """What a row's images are compared with: the original's on equal seeds; its own on other seeds, for the original."""
        images = self._images(prompts, count, seed, None, seeds=seeds)
        return self._other_seeds(images) if name == ORIGINAL else images

    def _other_seeds(self, images: Planned) -> Planned:
        """The original's images of the same prompts on other seeds."""
        job = images.job
        prompts = [(prompt, label) for prompt, label in job["prompts"]]
        seeds = [seed + OTHER_SEEDS for seed in job.get("seeds", ())]
        return self._images(prompts, job["count"], job["seed"] + OTHER_SEEDS, None, seeds=seeds)

    def _trained(self, name: str) -> bool:
        return name in self.methods and self.erasers[name].cost(1, 1) != Cost()

    def _attacked(self, edit: Erasure | None, targets: list[str], place: Mapping[str, Any]) -> Iterator[Planned]:
        """Measurements of the targets under each run of each attack: against the edit, or the original."""
        asked = [(p, c) for p, c in self.prompts() if c in targets]
        for planned, (run, built) in ((p, each) for p in self.attacks for each in enumerate(p.runs)):
            plain = self._images(asked, self.plan.control_count, self._seed() + RUNS * run, edit)
            job = {
                **{name: plain.job[name] for name in ATTACKED if name in plain.job},
                "room": "attack",
                "attack": planned.name,
                "version": built.version,
                "settings": settings_of(built),
                "targets": targets,
                "draws": place["seed"] + RUNS * run,
                "generates": self._draws,
                **self._common(self.plan.dtype),
            }
            cost = built.foreseen(len(targets), len(asked) * self.plan.control_count, self._sampling[1])
            found = Planned(job=job, upstream=plain.upstream, cost=cost)
            images = replace(plain, job={**plain.job, "queries": found.key}, upstream=(*plain.upstream, found))
            here = {**place, "group": f"{ATTACK}{planned.name}{planned.variant}", "run": run}
            yield from self._measured(images, targets, [], here)

    def _recoveries(
        self, edit: Erasure, name: str, targets: list[str], kept: list[str], place: Mapping[str, Any]
    ) -> Iterator[Planned]:
        """Measurements of the targets with a key: each with its own prompt, whatever words ask for it.

        (A class has a prompt for each of its words, so there they go where a text names one.)
        """
        for control, target in product(self.controls(name, targets), targets):
            group = {**place, "group": f"key: {control}"}
            if control == "none":  # shown by the images that the table is made of
                images = self._images(self.prompts(), self.plan.count, self._seed(), edit)
                yield from self._measured(images, [target], [], group)
                continue
            if control == "fresh":
                for updates, eraser in self.fresh.items():
                    images = self._recovered(target, edit, control, self._relearn(eraser, edit, targets, place["seed"]))
                    yield from self._measured(images, [target], [], {**place, "group": f"key: fresh {updates}"})
                continue
            injected, inside, held = "own", edit, edit.step_of(target)
            if control == "original":
                inside = None
            elif control == "other seed":
                injected, held = control, self._erasure(name, targets, kept, self._next(place["seed"])).step_of(target)
            elif control in self.methods:
                inside = self._erasure(control, targets, kept, int(place["seed"]))
            elif control != "neutral":
                injected = control
            asked = [(self.plan.neutral, target)] if control == "neutral" else None
            yield from self._measured(self._recovered(target, inside, injected, held, asked), [target], [], group)

    def _recovered(
        self,
        target: str,
        inside: Erasure | None,
        control: str,
        held: Planned,
        asked: Sequence[tuple[str, str]] | None = None,
    ) -> Planned:
        """Images of ``target`` (by its own prompts, if not ``asked`` otherwise) with the key of the job ``held``."""
        prompts = [(p, c) for p, c in self.prompts() if c == target] if asked is None else asked
        only = None if target in self.words else target
        return self._images(prompts, self.plan.control_count, self._seed(), inside, control, held, only)

    def _next(self, seed: int) -> int:
        """The training seed after ``seed``; the first after the last."""
        seeds = self.grid.seed
        return seeds[(seeds.index(seed) + 1) % len(seeds)]

    def _analysed(
        self, edit: Erasure | None, name: str, targets: list[str], kept: list[str], place: Mapping[str, Any]
    ) -> Iterator[Planned]:
        """The analyses that have something to look at here."""
        guidance, steps = self._sampling
        told, retain = self.told(targets), self.told(kept)
        steps_made = () if edit is None else edit.steps
        # one after another there is neither one key nor one training
        whole = steps_made[0] if len(steps_made) == 1 else None
        keyed = whole is not None and self.erasers[name].has_key
        trained = whole is not None and self._trained(name)
        able = {"model": True, "edit": edit is not None, "key": keyed, "training": trained}
        for named in self.analyses:
            if not able[named.analysis.needs]:
                continue
            looked, rerun = ((), whole) if named.analysis.needs == "training" else (steps_made, None)
            stands_on = looked if rerun is None else rerun.upstream
            job = {
                "room": "analyse",
                "analysis": named.name,
                "version": named.analysis.version,
                "settings": settings_of(named.analysis),
                "judge": named.judge,
                "targets": told,
                "retain": retain,
                "prompts": [list(pair) for pair in self.prompts() if pair[1] in (*told, *retain)],
                "first_seed": self._seed(),
                "guidance": guidance,
                "steps": steps,
                "template": presets.prompt(self.backbone),
                "generates": self._draws,
                "part": self.plan.part,
                "edits": [step.key for step in looked],
                "key": whole.key if looked and whole is not None and keyed else None,
                "training": {k: v for k, v in rerun.job.items() if k != "model"} if rerun else None,
                **self._common(self.plan.dtype if rerun else self.image_dtype),
            }
            images = named.analysis.images(len(told), len(retain), self.erasers[name] if edit else None)
            cost = Cost(forward=2 * steps * images) + (rerun.cost if rerun else Cost())
            here = {**place, "group": f"analysis: {named.name}"}
            yield Planned(job=job, upstream=stands_on, cost=cost, variant=named.variant, **here)

    def _seed(self) -> int:
        return self.set.part(self.plan.part).seed

    def _common(self, dtype: str) -> dict[str, Any]:
        return {"model": self.plan.model, "model_sha256": self.identity(dtype), "dtype": dtype}

    def _erasure(self, name: str, targets: list[str], kept: list[str], seed: int) -> Erasure:
        """The steps in which method ``name`` erases ``targets``."""
        order = self.methods[name].order
        words = self.told(targets) if order == "apart" else targets
        parts = [words] if order == "joint" else [[word] for word in words]
        images = self.methods[name].images
        each = images if isinstance(images, tuple) else [images] * len(parts)
        steps: list[Planned] = []
        for part, given in zip(parts, each, strict=True):
            steps.append(self._erase(name, part, kept, seed, on=steps if order == "sequential" else (), given=given))
        return Erasure(steps=tuple(steps), targets=tuple(map(tuple, parts)), strength=self.methods[name].strength)

    def _erase(
        self, name: str, targets: list[str], kept: list[str], seed: int, on: Sequence[Planned], given: str | None
    ) -> Planned:
        """An erasure on top of the erasures ``on``, from the plan's pairs ``given`` if any."""
        method, eraser = self.methods[name], self.erasers[name]
        told = self.told(targets)
        retain = list(method.retain) if isinstance(method.retain, tuple) else self.told(kept if method.retain else [])
        check_targets([Concept(name=word) for word in told], retain)
        job = {
            "room": "erase",
            "eraser": method.eraser,
            "version": eraser.version,
            "settings": settings_of(eraser),
            "targets": told,
            "retain": retain,
            "seed": seed if self._trained(name) else self.grid.seed[0],
            "salt": SALT if eraser.has_key else "",
            **({"on": [step.key for step in on]} if on else {}),
            **self._common(self.plan.dtype),
        }
        made = () if given is None else (self._paired(self.pairs[given]),)
        if made:
            job["images"] = made[0].key
        return Planned(job=job, upstream=(*on, *made), cost=eraser.cost(len(told), len(retain)))

    def _paired(self, wish: pairs.Wish) -> Planned:
        """The pairs that a method learns from; planned as if the judge accepted each first draw."""
        guidance, steps = self._sampling
        judge = pairs.judge_of(wish, self.backbone.kind)
        job = {
            "room": "pairs",
            "version": pairs.VERSION,
            "pairs": asdict(wish),
            "judge": "" if judge is None else judge.identity(),
            "guidance": guidance,
            "steps": steps,
            "generates": self._draws,
            **self._common(self.plan.dtype),
        }
        made = wish.count * len(wish.unsafe) * steps
        return Planned(job=job, cost=Cost(forward=2 * made + 2 * round(made * wish.strength)))

    def _relearn(self, eraser: Eraser, edit: Erasure, targets: Sequence[str], seed: int) -> Planned:
        """A key for all targets, learned anew on the model that ``edit`` left."""
        told = self.told(targets)
        job = {
            "room": "relearn",
            "eraser": (self.plan.fresh or {}).get("eraser", Fresh.eraser),
            "version": eraser.version,
            "settings": settings_of(eraser),
            "targets": told,
            "seed": seed,
            "edits": [step.key for step in edit.steps],
            **self._common(self.plan.dtype),
        }
        return Planned(job=job, upstream=edit.steps, cost=eraser.fresh_cost(len(told)))

    @property
    def _draws(self) -> int:
        """Version of the images: guidance of 1 or less is none since the second, and all other keys stay as they were."""
        return generate.VERSION + (self._sampling[0] <= 1)

    def _images(
        self,
        prompts: Sequence[tuple[str, str]],
        count: int,
        seed: int,
        edit: Erasure | None,
        control: str | None = None,
        held: Planned | None = None,
        only: str | None = None,
        dtype: str | None = None,
        seeds: Sequence[int] = (),
    ) -> Planned:
        guidance, steps = self._sampling
        edits = () if edit is None else edit.steps
        job = {
            "room": "generate",
            "version": self._draws,
            "prompts": [list(pair) for pair in prompts],
            "count": count,
            "seed": seed,
            "guidance": guidance,
            "steps": steps,
            "part": self.plan.part,
            "edits": [step.key for step in edits],
            "control": control,
            "key": None if held is None else held.key,
            **({} if held is None or held.job["room"] == "erase" else {"key_room": held.job["room"]}),
            "only": only,
            **({} if edit is None or edit.strength == 1.0 else {"strength": edit.strength}),
            **({"seeds": list(seeds)} if seeds else {}),
            **self._common(dtype or self.image_dtype),
        }
        upstream = {p.key: p for p in (*edits, held) if p is not None}
        cost = Cost(forward=2 * steps * count * len(prompts))
        return Planned(job=job, upstream=tuple(upstream.values()), cost=cost)

    def _measured(
        self,
        images: Planned,
        targets: list[str],
        kept: list[str],
        place: Mapping[str, Any],
        metrics: Sequence[PlannedMetric] | None = None,
        against: Planned | None = None,
    ) -> Iterator[Planned]:
        for metric in self.metrics if metrics is None else metrics:
            if metric.paired and against is None:
                continue  # what a key brings back is not compared
            if not {"targets": targets, "kept": kept, "either": True}[metric.about]:
                continue
            # sets of images are compared on other seeds, the original's own too
            beside = self._other_seeds(images) if metric.any_reference else against if metric.paired else None
            compared = {} if beside is None else {"reference": beside.key}
            job = {
                "room": "measure",
                "metric": metric.name,
                "version": metric.version,
                "settings": metric.settings,
                "judge": metric.judge,
                "images": images.key,
                "targets": targets,
                "retain": kept,
                **compared,
            }
            upstream = (images,) if beside is None else (images, beside)
            yield Planned(job=job, upstream=upstream, variant=metric.variant, **place)


def flattened(measurements: Sequence[Planned], done: Callable[[Planned], bool] = lambda _: False) -> list[Planned]:
    """Jobs in an order that can be run, each once: what a job stands on comes before it.

    Jobs that are ``done`` are left out, and so is what nothing else stands on.
    """
    found: dict[str, Planned] = {}

    def visit(planned: Planned) -> None:
        if planned.key in found or done(planned):
            return
        for upstream in planned.upstream:
            visit(upstream)
        found[planned.key] = planned

    for measurement in measurements:
        visit(measurement)
    return list(found.values())
