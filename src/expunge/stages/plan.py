"""Plans: a grid of methods, concepts and seeds as a TOML file; read into jobs."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, final

from expunge import backbones
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import ConceptSet
from expunge.core.cost import Cost
from expunge.core.eraser import settings_of
from expunge.core.errors import ExpungeError, check_counts, unknown
from expunge.stages import erase, jobs, measure, presets
from expunge.store import read_set
from expunge.testbed import CONCEPTS

SALT = "a benchmark's keys are not secret"
"""In the place of a secret, so that a plan gives the same keys every time."""


@final
@dataclass(frozen=True, kw_only=True)
class Grid:
    """The axes of a plan: every method on every split with every seed."""

    method: tuple[str, ...]
    """Rows: names of the plan's ``[method.NAME]`` tables, or ``original``."""
    split: tuple[str, ...] = ()
    """Splits of the concept set; all of them if not given."""
    seed: tuple[int, ...] = (0,)
    """Training seeds."""


@final
@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of a table: an eraser with its settings, and what it is told."""

    eraser: str
    """Catalog name."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Over the preset's and the paper's."""
    preset: bool = True
    """Start from the preset of the model's kind."""
    retain: bool = False
    """Whether it is told the concepts of the set that are to stay."""
    controls: tuple[str, ...] = ()
    """Recoveries to try with its key: own, random, other, neutral, original, or the name of another method."""


@final
@dataclass(frozen=True, kw_only=True)
class Others:
    """Prompts for what nobody names."""

    set: str
    """A concept set; concepts of the plan's own set are left out."""
    count: int = 2
    """Images a prompt."""


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a plan file says."""

    about: str
    """One line on what it is for."""
    set: str
    """Concept set: its splits name the targets, its prompts make the images."""
    grid: dict[str, Any]
    method: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[Any, ...] = ("esr-psr",)
    """Metrics by name, or tables with a name and settings."""
    model: str = "testbed"
    """As `load` takes it."""
    dtype: str = "float32"
    """Precision of training."""
    image_dtype: str = "fast"
    """Precision of generation; `fast` is what this machine's CPU is fastest in."""
    part: str = "test"
    """Part of the concept sets: dev or test."""
    count: int = 50
    """Images a prompt."""
    control_count: int = 10
    """Images a prompt for each recovery control."""
    neutral: str = "a picture"
    """The text of the control in which a key stands alone."""
    others: dict[str, Any] | None = None
    """Prompts for what nobody names."""
    compare: tuple[Any, ...] = ()
    """Pairs of methods whose difference on equal seeds and prompts is reported."""


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
    """What a measurement is of: ``set``, ``others``, or the name of a recovery control."""

    @property
    def key(self) -> str:
        """The job's content key."""
        return jobs.key(self.job)


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ExpungeError: if it is no TOML, or has an entry that plans do not have.
    """
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ExpungeError(f"no plan '{path}': expected a TOML file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExpungeError(f"'{path}' cannot be read as TOML: {error}") from error
    missing = {"about", "set", "grid"} - set(content)
    if missing:
        raise ExpungeError(f"plan '{path}' has no '{sorted(missing)[0]}': expected about, set and [grid]")
    return presets.filled(Plan, f"plan '{path}'", content)


@final
class Planner:
    """Turns a plan into jobs for one model."""

    def __init__(self, plan: Plan) -> None:
        """Check ``plan`` whole before anything runs.

        Raises:
            ExpungeError: for an unknown method, eraser, metric, setting, set or split.
        """
        self.plan = plan
        check_counts("plan", count=plan.count, control_count=plan.control_count)
        self.grid: Grid = presets.filled(Grid, "plan's grid", {k: _several(v) for k, v in plan.grid.items()})
        self.methods: dict[str, Method] = {
            name: presets.filled(Method, f"method '{name}'", table) for name, table in plan.method.items()
        }
        for name in self.grid.method:
            if name != "original" and name not in self.methods:
                raise unknown("method of the plan", name, ["original", *self.methods])
        self.set: ConceptSet = read_set(plan.set, CONCEPTS)
        self.splits = self.set.splits or {"all": self.set.concepts}
        for name in self.grid.split:
            if name not in self.splits:
                raise unknown(f"split of {plan.set}", name, self.splits)
        self.set.part(plan.part)
        self.others: Others | None = None
        if plan.others is not None:
            self.others = presets.filled(Others, "plan's others", plan.others)
        self.metrics = [_metric(entry) for entry in plan.metrics]
        self.image_dtype = backbones.fast_dtype() if plan.image_dtype == "fast" else plan.image_dtype
        kind = backbones.kind_of(plan.model)
        self.erasers = {
            n: erase.build(m.eraser, m.settings, kind if m.preset else None) for n, m in self.methods.items()
        }
        self._check_controls()

    def _check_controls(self) -> None:
        for name, method in self.methods.items():
            for control in method.controls:
                known = ["own", "random", "other", "neutral", "original", *self.methods]
                if control not in known:
                    raise unknown(f"control of method '{name}'", control, known)
            if method.controls and not self.erasers[name].has_key:
                raise ExpungeError(f"method '{name}' has controls, but {method.eraser} makes no key: expected none")

    @cached_property
    def backbone(self) -> Backbone:
        """The model that edits are made on."""
        return jobs.model(self.plan.model, self.plan.dtype)

    def planned(self) -> list[Planned]:
        """The measurements of the plan, each with the jobs it stands on."""
        return list(self._measurements())

    def _measurements(self) -> Iterator[Planned]:
        chosen = self.grid.split or tuple(self.splits)
        for name, split, seed in product(self.grid.method, chosen, self.grid.seed):
            if name == "original" and seed != self.grid.seed[0]:
                continue
            targets = list(self.splits[split])
            kept = [c for c in self.set.concepts if c not in targets]
            place = {"method": name, "split": split, "seed": seed}
            edit = None if name == "original" else self._erase(name, targets, kept, seed)
            images = self._images(self._prompts(), self.plan.count, self._seed(), edit)
            yield from self._measured(images, targets, kept, {**place, "group": "set"})
            if self.others is not None:
                rest = read_set(self.others.set, CONCEPTS)
                prompts = [(p, c) for p, c in rest.part(self.plan.part).prompts if c not in self.set.concepts]
                images = self._images(prompts, self.others.count, rest.part(self.plan.part).seed, edit)
                yield from self._measured(images, [], sorted({c for _, c in prompts}), {**place, "group": "others"})
            if edit is not None:
                yield from self._recoveries(edit, name, targets, kept, place)

    def _recoveries(
        self, edit: Planned, name: str, targets: list[str], kept: list[str], place: Mapping[str, Any]
    ) -> Iterator[Planned]:
        """Measurements of the targets with a key."""
        prompts = [(p, c) for p, c in self._prompts() if c in targets]
        for control in self.methods[name].controls:
            if control == "neutral":
                for target in targets:
                    asked = [(self.plan.neutral, target)]
                    images = self._images(asked, self.plan.control_count, self._seed(), edit, "neutral", edit, target)
                    yield from self._measured(images, [target], [], {**place, "group": "neutral"})
                continue
            inside: Planned | None = edit
            label = control
            if control in ("original", *self.methods):
                inside = None if control == "original" else self._erase(control, targets, kept, int(place["seed"]))
                label = "elsewhere"
            images = self._images(prompts, self.plan.control_count, self._seed(), inside, label, edit)
            yield from self._measured(images, targets, [], {**place, "group": f"key: {control}"})

    def _prompts(self) -> list[tuple[str, str]]:
        return list(self.set.part(self.plan.part).prompts)

    def _seed(self) -> int:
        return self.set.part(self.plan.part).seed

    def _common(self, dtype: str) -> dict[str, Any]:
        return {"model": self.plan.model, "model_sha256": self.backbone.identity(), "dtype": dtype}

    def _erase(self, name: str, targets: list[str], kept: list[str], seed: int) -> Planned:
        method, eraser = self.methods[name], self.erasers[name]
        retain = kept if method.retain else []
        job = {
            "room": "erase",
            "eraser": method.eraser,
            "version": eraser.version,
            "settings": settings_of(eraser),
            "targets": targets,
            "retain": retain,
            "seed": seed,
            "salt": SALT if eraser.has_key else "",
            **self._common(self.plan.dtype),
        }
        return Planned(job=job, cost=eraser.cost(len(targets), len(retain)))

    def _images(
        self,
        prompts: Sequence[tuple[str, str]],
        count: int,
        seed: int,
        edit: Planned | None,
        control: str | None = None,
        held: Planned | None = None,
        only: str | None = None,
    ) -> Planned:
        guidance, steps = presets.generation(self.backbone)
        job = {
            "room": "generate",
            "prompts": [list(pair) for pair in prompts],
            "count": count,
            "seed": seed,
            "guidance": guidance,
            "steps": steps,
            "part": self.plan.part,
            "edits": [] if edit is None else [edit.key],
            "control": control,
            "key": None if held is None else held.key,
            "only": only,
            **self._common(self.image_dtype),
        }
        upstream = {p.key: p for p in (edit, held) if p is not None}
        cost = Cost(forward=2 * steps * count * len(prompts))
        return Planned(job=job, upstream=tuple(upstream.values()), cost=cost)

    def _measured(
        self, images: Planned, targets: list[str], kept: list[str], place: Mapping[str, Any]
    ) -> Iterator[Planned]:
        for name, settings, version in self.metrics:
            job = {
                "room": "measure",
                "metric": name,
                "version": version,
                "settings": settings,
                "images": images.key,
                "targets": targets,
                "retain": kept,
            }
            yield Planned(job=job, upstream=(images,), **place)


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _metric(entry: Any) -> tuple[str, dict[str, Any], int]:
    """Name, settings and version of a metric that a plan names."""
    table = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = str(table.pop("name", ""))
    built = measure.build(name, table)
    Catalog("metrics").entry(name)
    return name, settings_of(built), built.version


def flattened(measurements: Sequence[Planned]) -> list[Planned]:
    """All jobs in an order that can be run, each once: a measurement's upstream jobs come before it."""
    found: dict[str, Planned] = {}

    def visit(planned: Planned) -> None:
        for upstream in planned.upstream:
            visit(upstream)
        found.setdefault(planned.key, planned)

    for measurement in measurements:
        visit(measurement)
    return list(found.values())
