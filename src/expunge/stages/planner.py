"""The planner: turns a plan into jobs, each with the jobs it stands on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, final

from expunge import backbones
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, ConceptSet, Part, check_targets
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, settings_of
from expunge.core.errors import ExpungeError, check_counts, check_positive, unknown
from expunge.stages import erase, generate, jobs, pairs, presets
from expunge.stages.claims import Claim
from expunge.stages.curves import Curve, Histogram, file_name
from expunge.stages.plan import (
    ASKED,
    ATTACK,
    CONTROLS,
    GROUPS,
    KEYLESS,
    KINDS,
    ORIGINAL,
    Also,
    Fresh,
    Further,
    Grid,
    Method,
    Others,
    Plan,
    PlannedMetric,
    Published,
    planned_analysis,
    planned_attack,
    planned_metric,
    planned_pairs,
    precision_of,
    several,
    words_of,
)
from expunge.store import read_lines, read_set
from expunge.testbed import CONCEPTS

SALT = "a benchmark's keys are not secret"
"""In the place of a secret, so that a plan gives the same keys every time."""

OTHER_SEEDS = 500_000
"""How far the seeds are that the original is compared with itself on."""
ATTACKED = ("prompts", "count", "seed", "guidance", "steps", "edits", "strength")
"""What an attack is told of the images that it is to change."""
RUNS = 1_000
"""How far apart the draws and seeds of an attack's runs are."""
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
class Planner:
    """Turns a plan into jobs for one model."""

    def __init__(self, plan: Plan) -> None:
        """Check ``plan`` whole before anything runs.

        Raises:
            ExpungeError: for an unknown method, eraser, metric, setting, set or split.
        """
        self.plan = plan
        check_counts("plan", count=plan.count, control_count=plan.control_count, attack_runs=plan.attack_runs)
        self.grid: Grid = presets.filled(Grid, "plan's grid", {k: several(v) for k, v in plan.grid.items()})
        if plan.attacks and max(self.grid.seed) - min(self.grid.seed) >= RUNS:
            raise ExpungeError(
                f"attacks with training seeds {list(self.grid.seed)}: expected them within {RUNS} of each other"
            )
        self.methods: dict[str, Method] = {
            name: presets.filled(Method, f"method '{name}'", table) for name, table in plan.method.items()
        }
        for name in self.grid.method:
            if name != ORIGINAL and precision_of(name) is None and name not in self.methods:
                raise unknown("method of the plan", name, [ORIGINAL, *self.methods])
        self.set: ConceptSet = read_set(plan.set, CONCEPTS)
        given = {name: words_of(f"split '{name}'", concepts) for name, concepts in plan.splits.items()}
        self.splits = given or self.set.splits or {"all": self.set.concepts}
        self.words = {concept: words_of(f"words of '{concept}'", words) for concept, words in plan.words.items()}
        for concept in [*(c for targets in self.splits.values() for c in targets), *self.words]:
            if concept not in self.set.concepts:
                raise unknown(f"concept of {plan.set}", concept, self.set.concepts)
        for name in self.grid.split:
            if name not in self.splits:
                raise unknown(f"split of {plan.set}", name, self.splits)
        self._part(plan.set, self.set)
        self.published = [] if plan.paper is None else self._published(plan.paper)
        for pair in plan.compare:
            if len(pair) != 2:
                raise ExpungeError(f"plan's compare names {list(pair)}: expected pairs of methods")
            for name in pair:
                if name not in self.grid.method:
                    raise unknown("method of the grid to compare", name, self.grid.method)
        self.claims: list[Claim] = [presets.filled(Claim, "plan's claim", entry) for entry in plan.claims]
        self.figures: list[Curve] = [presets.filled(Curve, "plan's figure", entry) for entry in plan.figures]
        self.histograms: list[Histogram] = [
            presets.filled(Histogram, "plan's histogram", entry) for entry in plan.histograms
        ]
        for named in (*self.claims, *self.figures, *self.histograms):
            named.check(self.grid.method)
        files = [file_name(figure.title) for figure in (*self.figures, *self.histograms)]
        for name in files:
            if files.count(name) > 1:
                raise ExpungeError(f"two figures of the plan would be '{name}': expected titles that differ in words")
        reserved = [
            name for name in self.methods if name in (ORIGINAL, *CONTROLS, *ASKED) or precision_of(name) is not None
        ]
        if reserved:
            raise ExpungeError(
                f"a method is called '{reserved[0]}': expected another name than original or a control's"
            )
        self.metrics = [planned_metric(entry) for entry in plan.metrics]
        self.analyses = [planned_analysis(entry) for entry in plan.analyses]
        kind = backbones.kind_of(plan.model)
        self.attacks = [planned_attack(entry, kind, plan.attack_runs) for entry in plan.attacks]
        called = [f"{a.name}{a.variant}" for a in self.attacks]
        asked = [claim.group for claim in self.claims]
        asked += [group for curve in self.figures for group in (curve.x_group, *(line.group for line in curve.read))]
        for group in asked:
            if group.startswith(ATTACK) and group.removeprefix(ATTACK) not in called:
                raise unknown("attack of the plan in a claim or figure", group.removeprefix(ATTACK), called)
        for name in called:
            if called.count(name) > 1:
                raise ExpungeError(
                    f"two attacks of the plan are both '{name}' in the table: expected settings that tell them apart"
                )
        self.pairs = {name: planned_pairs(name, table) for name, table in plan.pairs.items()}
        for wish in self.pairs.values():
            pairs.judge_of(wish, kind)
        self.further = [] if plan.others is None else [self._others(plan.others)]
        self.further += [self._also(entry) for entry in plan.also]
        names = [f.group for f in self.further]
        for name in names:
            if names.count(name) > 1:
                raise ExpungeError(f"two further sets of the plan are called '{name}': expected each once")
        self._check_labels()
        self._check_histograms()
        self.image_dtype = backbones.fast_dtype() if plan.image_dtype == "fast" else plan.image_dtype
        self.erasers = {
            n: erase.build(m.eraser, m.settings, kind if m.preset else None) for n, m in self.methods.items()
        }
        self._check_pairs()
        for name, eraser in self.erasers.items():  # which refuse targets that they lack something for
            if self.methods[name].images is None:
                for split in self.grid.split or self.splits:
                    eraser.needs([Concept(name=word) for word in self._told(self.splits[split])])
        asked = any("fresh" in (m.controls or ()) for m in self.methods.values())
        self.fresh = self._fresh(plan.fresh or {}, kind) if asked or plan.fresh is not None else {}
        self._check_controls()

    def _fresh(self, table: Mapping[str, Any], kind: str) -> dict[int, Eraser]:
        """What learns fresh keys, by the number of its updates."""
        fresh: Fresh = presets.filled(Fresh, "plan's fresh", table)
        base = erase.build(fresh.eraser, fresh.settings, kind if fresh.preset else None)
        if not base.has_key:
            raise ExpungeError(f"plan's fresh with {fresh.eraser}, which makes no key: expected a method with keys")
        if not fresh.updates:
            return {int(settings_of(base)["iterations"]): base}
        given = [{**fresh.settings, "iterations": updates} for updates in fresh.updates]
        return {
            updates: erase.build(fresh.eraser, settings, kind if fresh.preset else None)
            for updates, settings in zip(fresh.updates, given, strict=True)
        }

    def _published(self, table: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The published figures of the plan's rows."""
        paper: Published = presets.filled(Published, "plan's paper", table)
        lines = read_lines(Path(paper.file))
        found: list[dict[str, Any]] = []
        for name, at in paper.rows.items():
            if name not in self.grid.method:
                raise unknown("method of the grid with published figures", name, self.grid.method)
            row = [r for r in lines if [r.get("table"), r.get("method")] == at]
            if not row:
                tables = [str([r.get("table"), r.get("method")]) for r in lines]
                raise unknown(f"published row of '{name}'", str(at), list(dict.fromkeys(tables)))
            bad = [
                r for r in row if not isinstance(r.get("metric"), str) or not isinstance(r.get("value"), int | float)
            ]
            if bad:
                raise ExpungeError(f"published row {bad[0]} of '{name}': expected a metric and a number as its value")
            found += [{**r, "method": name, "published_as": at[1], "group": "paper"} for r in row]
        return found

    def _also(self, entry: Any) -> Further:
        """A further set, read and checked."""
        further: Also = presets.filled(Also, "plan's also", entry)
        check_counts("plan's also", count=further.count)
        metrics = self.metrics if further.metrics is None else [planned_metric(m) for m in further.metrics]
        if further.label is not None and not further.set.endswith(".csv"):
            raise ExpungeError(f"set '{further.set}' with label '{further.label}': expected one for a CSV only")
        read = read_set(further.set, CONCEPTS, further.label)
        if read.name in GROUPS or read.name.startswith(KINDS):
            raise ExpungeError(
                f"a further set of the plan is called '{read.name}': expected another name than {', '.join(GROUPS)}"
            )
        return Further(read.name, self._part(further.set, read), read.concepts, further.count, metrics)

    def _part(self, name: str, read: ConceptSet) -> Part:
        """The plan's part of a set that was read by ``name``; a published file of prompts has no other than test."""
        if name.endswith(".csv") and self.plan.part != "test":
            raise ExpungeError(f"set '{name}' with part '{self.plan.part}': expected test, as a CSV has one part only")
        return read.part(self.plan.part)

    def _others(self, table: Mapping[str, Any]) -> Further:
        """The prompts for what no method of the plan is told, nor the plan's own set names."""
        others: Others = presets.filled(Others, "plan's others", table)
        check_counts("plan's others", count=others.count)
        listed = [w for m in self.methods.values() if not isinstance(m.retain, bool) for w in m.retain]
        part = read_set(others.set, CONCEPTS).part(self.plan.part)
        shown = [f" {p} " for wish in self.pairs.values() for p in (*wish.unsafe, *wish.safe)]
        seen = {c for _, c in part.prompts if any(f" {c} " in p for p in shown)}
        named = {*self.set.concepts, *self._told(self.set.concepts), *listed, *seen}
        prompts = tuple((p, c) for p, c in part.prompts if c not in named)
        concepts = sorted({c for _, c in prompts})
        return Further("others", replace(part, prompts=prompts), concepts, others.count, self.metrics)

    def _check_labels(self) -> None:
        """Refuse a concept that a metric's judge does not know, before anything is trained."""
        asked = [(self.metrics, self.set.concepts), *((f.metrics, f.concepts) for f in self.further)]
        erased = {c for targets in self.splits.values() for c in (*targets, *self._told(targets))}
        for metrics, concepts in asked:
            for metric in metrics:
                judge = metric.settings.get("judge")
                if judge is not None:
                    opened = Catalog("judges").open(judge)
                    for concept in concepts if metric.asks_kept else erased.intersection(concepts):
                        opened.label_ids(concept)

    def _check_histograms(self) -> None:
        """Refuse bars of images whose detections nothing counts, or two metrics do."""
        gone = {c for targets in self.splits.values() for c in (*targets, *self._told(targets))}
        counted = {"set": self.metrics, **{f.group: f.metrics for f in self.further if gone.intersection(f.concepts)}}
        for bars in self.histograms:
            if [metric.name for metric in counted.get(bars.group, ())].count("ner") != 1:
                raise ExpungeError(
                    f"histogram '{bars.title}' of '{bars.group}': expected a set with targets and the metric 'ner' once"
                )

    def _check_pairs(self) -> None:
        for name, method in self.methods.items():
            if method.images is None:
                continue
            given = [method.images] if isinstance(method.images, str) else list(method.images)
            for pairs_name in given:
                if pairs_name not in self.pairs:
                    raise unknown(f"pairs of method '{name}'", pairs_name, self.pairs)
            chosen = self.grid.split or tuple(self.splits)
            if method.order == "sequential" or len(chosen) > 1:
                raise ExpungeError(
                    f"method '{name}' learns from pairs {given} for targets one after another, or several splits: "
                    "expected one split, erased at once or apart"
                )
            words = [w for split in chosen for w in self._told(self.splits[split])]
            if method.order == "joint" and len(given) != 1:
                raise ExpungeError(
                    f"method '{name}' learns from pairs {given}, erased at once: expected the name of one"
                )
            if method.order == "apart" and len(given) != len(words):
                raise ExpungeError(
                    f"method '{name}' learns from {len(given)} of the plan's pairs, {given}: expected one for each of {words}"
                )
            wanted = set(self.erasers[name].needs([Concept(name=word) for word in self._told(self.set.concepts)]))
            if wanted != set(pairs.ROLES):
                had = f"{' and '.join(sorted(wanted))} images" if wanted else "no images"
                raise ExpungeError(
                    f"method '{name}' learns from pairs {given}, but {method.eraser} wants {had}: expected a method "
                    f"that wants {' and '.join(pairs.ROLES)} ones"
                )

    def _check_controls(self) -> None:
        for name, method in self.methods.items():
            self._check_strength(name, method)
            if method.order == "apart":
                if self.erasers[name].has_key:
                    raise ExpungeError(f"method '{name}' with keys, erased apart: expected order joint or sequential")
                for split in self.grid.split or self.splits:
                    check_targets([Concept(name=word) for word in self._told(self.splits[split])], [])
            for control in method.controls or ():
                if control not in (*CONTROLS, *ASKED, *self.methods):
                    raise unknown(f"control of method '{name}'", control, [*CONTROLS, *ASKED, *self.methods])
                if control == "other":
                    self._check_exchange(name)
                if control == "other seed" and len(self.grid.seed) < 2:
                    raise ExpungeError(
                        f"method '{name}' with control other seed in a grid of one: expected two or more"
                    )
                if control in ("neutral", "other") and self.words:
                    raise ExpungeError(
                        f"method '{name}' with control {control} for a class of several words: expected another control"
                    )
            unnamed = self._unnamed() if self.controls(name, self.set.concepts) else None
            if unnamed is not None:
                raise ExpungeError(
                    f"method '{name}' with keys, and no prompt for '{unnamed}' has one of its words: expected no controls"
                )
            if not (self.erasers[name].has_key or set(method.controls or ()) <= set(KEYLESS)):
                raise ExpungeError(
                    f"method '{name}' has controls, but {method.eraser} makes no key: expected no others than "
                    f"{' and '.join(KEYLESS)}"
                )

    def _check_strength(self, name: str, method: Method) -> None:
        """Refuse a strength that is none, or scales nothing, or that steps, analyses or a key learned anew ignore."""
        check_positive(f"method '{name}'", strength=method.strength)
        if method.strength != 1.0 and not self.erasers[name].scales:
            raise ExpungeError(
                f"method '{name}' with strength {method.strength}, and no weights to scale: expected strength 1"
            )
        looked = [named.name for named in self.analyses]
        looked += [word for word in (*(method.controls or ()), method.order) if word in ("fresh", "sequential")]
        if method.strength != 1.0 and looked:
            raise ExpungeError(f"method '{name}' with strength {method.strength} and {looked[0]}: expected strength 1")

    def _check_exchange(self, name: str) -> None:
        """Refuse the control that exchanges prompts where a key has none to exchange."""
        if any(len(self.splits[s]) < 2 for s in self.grid.split or self.splits):
            raise ExpungeError(f"method '{name}' with control other on a split of one target: expected two or more")
        if self._alone(name):
            how = "sequential" if self.methods[name].order == "sequential" else "shared"
            raise ExpungeError(f"method '{name}' with control other and {how} keys: expected a key of several prompts")

    def _alone(self, name: str) -> bool:
        """Whether each key of a method holds one prompt only."""
        return self.methods[name].order == "sequential" or self.erasers[name].shares_key

    def controls(self, name: str, targets: Sequence[str]) -> Sequence[str]:
        """The recoveries to try with the key of method ``name``."""
        given = self.methods[name].controls
        if given is not None or not self.erasers[name].has_key:
            return given or ()
        left_out = ("neutral", "other") if self.words else ("other",) if len(targets) < 2 or self._alone(name) else ()
        return [c for c in CONTROLS if c not in left_out]

    def _unnamed(self) -> str | None:
        """A class none of whose prompts holds one of its words, so that its keys are never used."""
        for concept, words in self.words.items():
            prompts = [p for p, c in self._prompts() if c == concept]
            if not any(word in prompt for word in words for prompt in prompts):
                return concept
        return None

    @property
    def groups(self) -> list[str]:
        """What the table's numbers are of, beside groups that begin with one of `KINDS`."""
        return ["set", "memory", *(further.group for further in self.further)]

    def _told(self, targets: Sequence[str]) -> list[str]:
        """The words that erasers are told for ``targets``."""
        return [word for target in targets for word in self.words.get(target, [target])]

    @cached_property
    def backbone(self) -> Backbone:
        """The model that edits are made on."""
        return jobs.model(self.plan.model, self.plan.dtype)

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
        gone = {*targets, *self._told(targets)}
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
            images = self._images(self._prompts(), self.plan.count, self._seed(), so_far)
            against = self._against(self._prompts(), self.plan.count, self._seed(), name)
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
        asked = [(p, c) for p, c in self._prompts() if c in targets]
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
                "generates": generate.VERSION,
                **self._common(self.plan.dtype),
            }
            cost = built.cost(len(targets), len(asked) * self.plan.control_count)
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
                images = self._images(self._prompts(), self.plan.count, self._seed(), edit)
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
        prompts = [(p, c) for p, c in self._prompts() if c == target] if asked is None else asked
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
        guidance, steps = presets.generation(self.backbone)
        told, retain = self._told(targets), self._told(kept)
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
                "prompts": [list(pair) for pair in self._prompts() if pair[1] in (*told, *retain)],
                "first_seed": self._seed(),
                "guidance": guidance,
                "steps": steps,
                "template": presets.prompt(self.backbone),
                "generates": generate.VERSION,
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

    def _prompts(self) -> list[tuple[str, str]]:
        return list(self.set.part(self.plan.part).prompts)

    def _seed(self) -> int:
        return self.set.part(self.plan.part).seed

    def _common(self, dtype: str) -> dict[str, Any]:
        return {"model": self.plan.model, "model_sha256": self.identity(dtype), "dtype": dtype}

    def _erasure(self, name: str, targets: list[str], kept: list[str], seed: int) -> Erasure:
        """The steps in which method ``name`` erases ``targets``."""
        order = self.methods[name].order
        words = self._told(targets) if order == "apart" else targets
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
        told = self._told(targets)
        retain = list(method.retain) if isinstance(method.retain, tuple) else self._told(kept if method.retain else [])
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
        guidance, steps = presets.generation(self.backbone)
        judge = pairs.judge_of(wish, self.backbone.kind)
        job = {
            "room": "pairs",
            "version": pairs.VERSION,
            "pairs": asdict(wish),
            "judge": "" if judge is None else judge.identity(),
            "guidance": guidance,
            "steps": steps,
            "generates": generate.VERSION,
            **self._common(self.plan.dtype),
        }
        made = wish.count * len(wish.unsafe) * steps
        return Planned(job=job, cost=Cost(forward=2 * made + 2 * round(made * wish.strength)))

    def _relearn(self, eraser: Eraser, edit: Erasure, targets: Sequence[str], seed: int) -> Planned:
        """A key for all targets, learned anew on the model that ``edit`` left."""
        told = self._told(targets)
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
        guidance, steps = presets.generation(self.backbone)
        edits = () if edit is None else edit.steps
        job = {
            "room": "generate",
            "version": generate.VERSION,
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
