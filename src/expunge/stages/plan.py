"""Plans: a grid of methods, concepts and seeds as a TOML file."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

from expunge import backbones
from expunge.core.analysis import Analysis
from expunge.core.attack import Attack
from expunge.core.catalog import Catalog
from expunge.core.concept import Part
from expunge.core.eraser import settings_of
from expunge.core.errors import ExpungeError, each_once, unknown
from expunge.pretrained import clip
from expunge.settings.layers import filled
from expunge.stages import analyse, attack, measure, pairs

SPLIT = "split: "
"""How the group of the set's numbers of one split alone begins."""
ATTACK = "attack: "
"""How the group of what an attack brought back begins."""
KINDS = ("key: ", ATTACK, "analysis: ", "after ", SPLIT)
"""How the names of groups of a kind begin."""
GROUPS = ("set", "others", "memory", "paper")
"""What a number of a table is of, if not of a further set, which gives its name, ``key: CONTROL``, or ``after STEP``."""

ORIGINAL = "original"
"""The row of the model as it is."""
PRECISION = "original in "
"""How the row of the model as it is in another precision begins, compared with the original on equal seeds: a scale."""


def precision_of(row: str) -> str | None:
    """The precision that such a row names; None for all others."""
    return row.removeprefix(PRECISION) if row.startswith(PRECISION) else None


CONTROLS = ("none", "own", "random", "other", "neutral", "original")
"""Recoveries: the edited model without a key, with its own, with random prompts of the same norms, with each concept's prompt
exchanged for the next one's, with its own and a neutral text, and the original model with the key."""
ASKED = ("other seed", "fresh")
"""Recoveries that are made only where a method names them: with the key of the same erasure with the grid's next seed, and
with a key that was learned anew on the edited model, without the private one."""
KEYLESS = ("none", "fresh")
"""Recoveries that need no key of the method's own."""


@final
@dataclass(frozen=True, kw_only=True)
class Grid:
    """The axes of a plan: every method on every split with every seed."""

    method: tuple[str, ...]
    """Rows: names of the plan's ``[method.NAME]`` tables, ``original``, or ``original in DTYPE``."""
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
    retain: bool | tuple[str, ...] = False
    """Whether it is told the concepts of the set that are to stay; or other words that it is told to keep."""
    images: str | tuple[str, ...] | None = None
    """The plan's pairs that it learns from, for ``apart`` those of each word; a method that wants images has the model make its
    own if not given."""
    strength: float = 1.0
    """What its edits are attached with, for images and attacks: 0.5 is half way. Rows that differ by it alone share one."""
    order: Literal["joint", "sequential", "apart"] = "joint"
    """Whether a split's targets are erased at once; one after another, each erasure on top of the ones before; or every word
    alone on the model as it is, and the edits attached together (no method with keys)."""
    controls: tuple[str, ...] | None = None
    """Recoveries to try: none, own, random, other, neutral, original, other seed, fresh, or the name of another method.

    A method without keys may have none and fresh. The first six if not given, for an eraser that makes keys.
    """


@final
@dataclass(frozen=True, kw_only=True)
class Fresh:
    """How a key is learned anew on an edited model, for the control ``fresh``: alike for all methods of a plan."""

    eraser: str = "kpop"
    """A method with keys, by catalog name."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Over the preset's and the paper's."""
    preset: bool = True
    """Start from the preset of the model's kind."""
    updates: tuple[int, ...] = ()
    """Numbers of updates, a control each; the settings' own if not given."""


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
class Also:
    """Further prompts, for the plan's concepts or others: a split's concepts count as erased, all else as kept."""

    set: str
    """A concept set."""
    count: int
    """Images a prompt."""
    label: str | None = None
    """What every prompt asks for, in a set that is a CSV without labels."""
    metrics: tuple[Any, ...] | None = None
    """Metrics for these images; the plan's if not given."""


@final
@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures of a paper, which are of its own model, prompts and judge."""

    file: str
    """JSON Lines with table, method, metric, value and source, from the folder that expunge runs in."""
    rows: dict[str, Any]
    """By row of the plan: the table and the method there."""


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a plan file says."""

    about: str
    """One line on what it is for."""
    set: str
    """Concept set, by name or file (TOML, or a published CSV): its splits name the targets, its prompts make the images."""
    grid: dict[str, Any]
    splits: dict[str, Any] = field(default_factory=dict)
    """Targets by split, instead of the set's own splits."""
    words: dict[str, Any] = field(default_factory=dict)
    """What erasers are told for a concept that is a class ("weapon") and not its own name."""
    method: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, Any] = field(default_factory=dict)
    """Pairs of images by name, as `expunge pairs` makes them, for methods that learn from some: tables of what is wanted, with
    ``phrases`` of each unsafe thing redrawn as each safe one."""
    metrics: tuple[Any, ...] = ("esr-psr",)
    """Metrics by name, or tables with a name and settings."""
    analyses: tuple[Any, ...] = ()
    """Analyses of each edit (and of the original model, for one that needs no edit), by name, or tables as for metrics."""
    model: str = "testbed"
    """As `load` takes it."""
    dtype: str = "float32"
    """Precision of training."""
    image_dtype: str = "fast"
    """Precision of generation; `fast` is what this machine's CPU is fastest in."""
    part: str = "test"
    """Part of the concept sets: dev or test."""
    guidance: float | None = None
    """Scale of classifier-free guidance of the plan's images, its pairs' too; the model's own if not given. It is not that of
    what methods and attacks draw for themselves."""
    steps: int | None = None
    """Denoising steps; likewise."""
    count: int = 50
    """Images a prompt."""
    control_count: int = 10
    """Images a prompt for each recovery control; without a key the table's own images show it."""
    neutral: str = "a picture"
    """The text of the control in which a key stands alone."""
    fresh: dict[str, Any] | None = None
    """How keys are learned anew, for the control ``fresh``."""
    others: dict[str, Any] | None = None
    """Prompts for what nobody names."""
    also: tuple[Any, ...] = ()
    """Tables of further sets, each with its count and perhaps metrics; the table calls them by the set's name."""
    attacks: tuple[Any, ...] = ()
    """Attacks on every row (the original's calibrates them), by name or as tables with a name and settings over the preset's
    (``preset = false``: over the paper's; ``apart = true``: a run for each of its ``prompts``); ``control_count`` images a
    prompt for the targets and run, ``attack: NAME`` in the table."""
    attack_runs: int = 1
    """How often each attack is run on each row and training seed. Runs differ in draws and image seeds, training seeds in
    draws; rows share both. Runs are the clusters of an attack's intervals, since all images of one share what it found."""
    memory: bool = False
    """Whether to count what tensors take in the first updates of each method's first erasure."""
    paper: dict[str, Any] | None = None
    """Published figures to print beside these: a JSON Lines ``file``, and for a row the ``table`` and ``method`` in it."""
    compare: tuple[tuple[str, ...], ...] = ()
    """Pairs of methods whose difference on equal seeds and prompts is reported."""
    claims: tuple[Any, ...] = ()
    """Tables of what a paper claims of the rows; the summary says which hold."""
    figures: tuple[Any, ...] = ()
    """Tables of curves to draw from the summary's numbers."""
    histograms: tuple[Any, ...] = ()
    """Tables of bars to draw from the detections that `ner` counts by label."""
    by_split: bool = False
    """Whether the table has the set's numbers of each split alone too."""


ON = "on"
"""The table of what a plan says otherwise for models of other kinds: ``[on.sd]``, which stands for XL and 3 too."""


def read_plan(path: Path, model: str | None = None) -> Plan:
    """Read a plan; with another ``model`` than its own, what it says for that one's kind.

    Raises:
        ExpungeError: if it is no TOML, has an entry that plans do not have, or nothing for models of that kind.
    """
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ExpungeError(f"no plan '{path}': expected a TOML file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ExpungeError(f"'{path}' cannot be read as TOML: {error}") from error
    missing = {"about", "set", "grid"} - set(content)
    if missing:
        raise ExpungeError(f"plan '{path}' has no '{sorted(missing)[0]}': expected about, set and [grid]")
    kinds = content.pop(ON, {})
    plan: Plan = filled(Plan, f"plan '{path}'", content)
    if not isinstance(kinds, dict):
        raise ExpungeError(f"plan '{path}' has on = {kinds!r}: expected tables [on.KIND]")
    others: dict[str, Plan] = {}
    for kind, said in kinds.items():
        if kind not in backbones.KINDS:
            raise unknown(f"kind of model that plan '{path}' is on", kind, backbones.KINDS)
        if kind == backbones.kind_of(plan.model):
            raise ExpungeError(
                f"plan '{path}' has [on.{kind}], and is for {plan.model}: expected another kind of model"
            )
        if not isinstance(said, dict) or "about" not in said or "model" in said:
            raise ExpungeError(f"plan '{path}' on {kind}: expected a table with an about of its own, and no model")
        others[kind] = filled(Plan, f"plan '{path}' on {kind}", _on(content, said))
    if model is None:
        return plan
    kind = backbones.kind_of(model)
    if kind == backbones.kind_of(plan.model):
        return replace(plan, model=model)
    found = others.get(kind) or (None if kind == "testbed" else others.get("sd"))
    if found is None:
        raise ExpungeError(
            f"plan '{path}' is for {plan.model}, and model '{model}' is of kind {kind}: expected a table [on.{kind}] in it, "
            "with a set and a judge that fit"
        )
    return replace(found, model=model)


def _on(content: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """A plan with what ``said`` replaces, methods one by one; an empty table goes back to the default.

    Its own figures lose their notes, which are of the testbed.
    """
    merged = {**content, **{key: value for key, value in said.items() if value != {}}}
    for key in said:
        if said[key] == {}:
            merged.pop(key, None)
    own, other = content.get("method"), said.get("method")
    if isinstance(own, dict) and isinstance(other, dict) and other:
        merged["method"] = {**own, **other}
    for drawn in ("figures", "histograms"):
        kept = content.get(drawn, ()) if drawn not in said else ()
        if kept and all(isinstance(figure, dict) for figure in kept):
            merged[drawn] = [{**figure, "note": said["about"]} for figure in kept]
    return merged


# what its entries name ------------------------------------------------------------------------------------------------
def several(value: Any) -> Any:
    """A list of one or more."""
    return value if isinstance(value, list) else [value]


def words_of(what: str, value: Any) -> tuple[str, ...]:
    """One word or several."""
    words = several(value)
    if not words or any(not isinstance(word, str) or not word.strip() for word in words):
        raise ExpungeError(f"plan's {what} is {value!r}: expected one word or a list of words")
    return each_once(f"plan's {what}", words)


class Further(NamedTuple):
    """Prompts beside those of the plan's own set."""

    group: str
    part: Part
    concepts: Sequence[str]
    images: int
    """Images a prompt."""
    metrics: Sequence["PlannedMetric"]


class PlannedAnalysis(NamedTuple):
    """An analysis that a plan names."""

    name: str
    analysis: Analysis
    judge: str
    """What its judge is told by."""
    variant: str


class PlannedMetric(NamedTuple):
    """A metric that a plan names."""

    name: str
    settings: dict[str, Any]
    version: int
    judge: str
    """What its judge, or the weights it uses itself, are told by, so that retrained ones measure again."""
    variant: str
    paired: bool
    """Whether it compares with the original's images."""
    asks_kept: bool
    """Whether its judge must know retained concepts too."""
    any_reference: bool
    """Whether it compares sets of images, and not image by image."""
    about: str
    """Which images it cannot do without: targets, kept, either."""
    check: Callable[[Sequence[tuple[str, str | None]]], None]
    """Refuses prompts whose images it could not measure."""


class PlannedAttack(NamedTuple):
    """An attack that a plan names."""

    name: str
    runs: Sequence[Attack]
    """One for each of its runs on a row and training seed."""
    variant: str


class Entry(NamedTuple):
    """A plug-in that a plan names, with settings."""

    name: str
    settings: dict[str, Any]
    variant: str


APART = "apart"
"""What an attack's table says beside its settings: a run for each of its prompts."""


def _entry(kind: str, entry: Any) -> Entry:
    if not isinstance(entry, str | dict):
        raise ExpungeError(f"plan's {kind} name {entry!r}: expected a name, or a table with a name and settings")
    table = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = str(table.pop("name", ""))
    told = table
    if kind == "attacks":  # how it is run, and what it asks, do not tell it from others
        told = {k: v for k, v in table.items() if k != APART and not isinstance(v, list | dict) and "{}" not in str(v)}
    variant = ", ".join(f"{k} {v}" for k, v in told.items())
    return Entry(name, table, f" ({variant})" if variant else "")


def _judge(settings: Mapping[str, Any]) -> str:
    """What the judge or the CLIP in a plug-in's settings is told by; empty where there is none, or nothing to tell."""
    judge = Catalog("judges").open(settings["judge"]).identity() if "judge" in settings else ""
    return judge or (clip.identity(settings["clip"]) if "clip" in settings else "")


def planned_metric(entry: Any) -> PlannedMetric:
    """A metric from its name, or from a table with its name and settings."""
    name, table, variant = _entry("metrics", entry)
    built = measure.build(name, table)
    settings = settings_of(built)
    told = _judge(settings) or built.identity()
    return PlannedMetric(
        name=name,
        settings=settings,
        version=built.version,
        judge=told,
        variant=variant,
        paired=built.paired,
        asks_kept=built.asks_kept,
        any_reference=built.any_reference,
        about=built.about,
        check=built.check,
    )


def planned_attack(entry: Any, kind: str, runs: int = 1) -> PlannedAttack:
    """Likewise an attack, with the preset of a kind of model unless its table says ``preset = false``.

    With ``apart = true`` each of its ``prompts`` is attacked alone, ``runs`` times.
    """
    name, table, variant = _entry("attacks", entry)
    said = {flag: table.pop(flag, default) for flag, default in (("preset", True), (APART, False))}
    for flag, value in said.items():
        if not isinstance(value, bool):
            raise ExpungeError(f"attack '{name}' with {flag} {value!r}: expected true or false")
    preset = kind if said["preset"] else None
    alone = [table]
    if said[APART]:
        alone = [{**table, "prompts": [prompt]} for prompt in words_of(f"{name} prompts", table.get("prompts", []))]
    return PlannedAttack(name, [attack.build(name, one, preset) for one in alone] * runs, variant)


def planned_analysis(entry: Any) -> PlannedAnalysis:
    """Likewise an analysis."""
    name, table, variant = _entry("analyses", entry)
    built = analyse.build(name, table)
    return PlannedAnalysis(name, built, _judge(settings_of(built)), variant)


def planned_pairs(name: str, table: Any) -> pairs.Wish:
    """The pairs that a plan names; with ``phrases``, every unsafe thing is redrawn as every safe one in every phrase."""
    if isinstance(table, dict) and "phrases" in table:
        templates = words_of(f"pairs '{name}' phrases", table["phrases"])
        unsafe, safe = (words_of(f"pairs '{name}' {role}", table.get(role, [])) for role in pairs.ROLES)
        rest = {key: value for key, value in table.items() if key != "phrases"}
        table = {**rest, **pairs.crossed(templates, unsafe, safe)._asdict()}
    return filled(pairs.Wish, f"pairs '{name}'", table)
