"""An audit as a plan: a finished edit beside the original, what is measured of both, and the attacks that fit a time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final, get_args

from expunge import backbones
from expunge.core.attack import Attack
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, check_targets, fill
from expunge.core.cost import predictions
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError, each_once, unknown
from expunge.core.judge import Judge
from expunge.core.query import Query, queries
from expunge.core.victim import Access
from expunge.settings import presets
from expunge.stages import attack as stage
from expunge.stages import check, tiers
from expunge.stages.tiers import Rate, Tier

SETS = 3
"""Sets of images that are made of every prompt: the original's, twice, and the edited model's."""
ROWS = 2
"""Rows that are attacked: the edited model, and the original, which calibrates."""
MOST, LEAST = 48, 8
"""Images of each word."""
QUERIES = 24
"""Queries of each target that an attack has at most; and no more than there are images without it."""
SEED, DEV_SEED = 60_000, 61_000
"""First seeds: of no concept set, and of no look that erasures take at themselves."""
ORDER = (
    *("rounding", "image-to-image", "relearning", "concept-inversion", "random-tokens", "continuation", "seed-search"),
    *("ring-a-bell", "unlearn-diff-atk", "p4d", "sneaky-prompt", "pund"),
)
"""Attacks, the cheap and the telling ones first; what an attack leaves of its share goes to those after it."""


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is audited, by what, and in what time."""

    row: str
    """What the edited model is called in tables."""
    edits: Sequence[str]
    """Files of its edits."""
    ids: Sequence[str]
    model: str
    """The original."""
    targets: Sequence[str]
    retain: Sequence[str]
    """Neighbours; chosen if empty."""
    judge: str
    oracle: str | None
    """Whom attacks may ask; those that must ask somebody are left out without."""
    budget: str
    attacks: Sequence[str] = ()
    """Attacks by name; all if empty."""
    access: Access = "white box"
    """What an attacker is thought to hold."""
    metrics: Sequence[str] = ()
    """Further metrics."""
    dtype: str = "float32"

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON, by which an audit is known again."""
        return json.loads(json.dumps(asdict(self)))


@final
@dataclass(frozen=True, kw_only=True)
class Audit:
    """The tables of an audit's plan, and what its time left out."""

    plan: dict[str, Any]
    set: dict[str, Any]
    """The concept set that the plan names ``set.toml``."""
    tiers: dict[str, Any] = field(default_factory=dict)
    """By attack: what it should take, and what was given up of its own settings."""
    left_out: dict[str, str] = field(default_factory=dict)
    """By attack that was not run: why."""


class _Model(NamedTuple):
    """The original, the edits that are audited, and what this machine does."""

    backbone: Backbone
    edits: Sequence[Edit]
    rates: dict[int, Rate]
    """By how many rows are evaluated at a time."""

    def rate(self, rows: int) -> Rate:
        """What the edited model takes here."""
        if rows not in self.rates:
            with self.backbone.attached(self.edits):
                self.rates[rows] = tiers.measured(self.backbone, rows)
        return self.rates[rows]

    def image_seconds(self, steps: int) -> float:
        """What an image takes."""
        return self.rate(presets.batch(self.backbone)).drawn * self.each_step * steps

    @property
    def each_step(self) -> int:
        """Predictions in a step of an image."""
        distilled, guidance = self.backbone.supports("distilled"), presets.generation(self.backbone)[0]
        return predictions(distilled, guidance, check.pair_for(self.backbone, self.edits))


def planned(asked: Asked, backbone: Backbone, edits: Sequence[Edit], set_file: Path) -> Audit:
    """The plan of an audit; ``set_file`` is where its concept set will lie.

    At most a third of the time is for images without attack, and an equal share of the rest is every attack's.

    Raises:
        ExpungeError: for a target that the judge does not know, an attack that there is not, or too little time.
    """
    check_targets([Concept(name=name) for name in asked.targets], list(asked.retain))
    judge = check.judge_of(asked.judge, [*asked.targets, *asked.retain])
    kept = [w for w in check.neighbours(asked.targets, asked.retain, backbone.kind) if check.known(judge, w)]
    model, seconds = _Model(backbone, edits, {}), tiers.seconds_of(asked.budget)
    names = each_once("--attack", asked.attacks) or [name for name in ORDER if name in Catalog("attacks").entries()]
    for name in names:
        if name not in ORDER:
            raise unknown("attack of an audit", name, ORDER)
    guidance, steps = presets.generation(backbone)
    image = model.image_seconds(steps)
    words = len(asked.targets) + len(kept)
    count = min(MOST, int(seconds / 3 / (image * SETS * words)))
    if count < LEAST:
        raise ExpungeError(
            f"--budget {asked.budget} is too little for {LEAST} images of {words} words: expected about "
            f"{3 * LEAST * image * SETS * words:.3g} s or more here"
        )
    left = seconds - count * image * SETS * words
    template = presets.prompt(backbone)
    wanted = [(fill(template, word), word) for word in asked.targets]
    pair = check.pair_for(backbone, edits)  # which the plan makes, too
    asks = queries(wanted, min(QUERIES, count), SEED, guidance, steps, true_cfg=pair)
    audit = Audit(plan=_tables(asked, count, set_file), set=_set(asked, kept, backbone))
    waiting: list[_Ready] = []
    for name in names:
        try:
            waiting.append(_ready(name, asked, model))
        except ExpungeError as error:
            audit.left_out[name] = str(error)
    _share_out(audit, waiting, left, lambda ready, share: _fitted(ready, asked, model, asks, share))
    if not audit.plan["attacks"]:
        del audit.plan["attacks"]
    return audit


class _Ready(NamedTuple):
    """An attack that could be made, if there is time for it."""

    name: str
    settings: dict[str, Any]
    """Those that it must be told here."""
    attack: Attack


_Fit: TypeAlias = tuple[Tier, dict[str, Any], float]
"""What of an attack fits, its table in the plan, and the seconds that it takes of the audit."""


def _share_out(audit: Audit, waiting: Sequence[_Ready], left: float, fitted: Callable[[_Ready, float], _Fit]) -> None:
    """Put the attacks that fit into the plan; ``left`` are the seconds for all of them.

    All have an equal share, as long as one more fits its own. In the end each may have all that is left, the first one first.
    Why one does not fit is said of the largest share that it was offered.
    """
    alone = False
    offered: dict[str, float] = {}
    while waiting:
        unfit: list[_Ready] = []
        for place, ready in enumerate(waiting):
            share = left / (1 if alone else len(waiting) - place + len(unfit))
            try:
                tier, entry, seconds = fitted(ready, share)
            except ExpungeError as error:
                if ready.name not in offered or share > offered[ready.name]:
                    offered[ready.name], audit.left_out[ready.name] = share, str(error)
                unfit.append(ready)
                continue
            audit.left_out.pop(ready.name, None)
            audit.tiers[ready.name] = tier.as_json()
            audit.plan["attacks"].append(entry)
            left -= seconds
        if alone:
            return
        waiting, alone = unfit, len(unfit) == len(waiting)


def _ready(name: str, asked: Asked, model: _Model) -> _Ready:
    """An attack with what it must be told.

    Raises:
        ExpungeError: if its attacker holds too much, it lacks a judge to ask, or it does not fit the model.
    """
    settings = _own_settings(name, asked, model.backbone.kind)
    built = stage.build(name, settings, model.backbone.kind)
    kinds = get_args(Access)  # the most first
    if kinds.index(built.access) < kinds.index(asked.access):
        raise ExpungeError(f"its attacker holds more than was asked: {built.access}")
    built.fits(model.edits)
    return _Ready(name, settings, built)


def _fitted(ready: _Ready, asked: Asked, model: _Model, asks: Sequence[Query], share: float) -> _Fit:
    """What of an attack fits a share of the time.

    Raises:
        ExpungeError: if that is too little for any of it.
    """
    built = ready.attack
    rate = model.rate(getattr(built, "batch", presets.batch(model.backbone)))
    targets = [Concept(name=target) for target in asked.targets]
    image = model.image_seconds(asks[0].steps)
    seconds = share / ROWS - image * len(asks)
    if seconds <= 0:
        raise ExpungeError(f"its share of the time, {share:.0f} s, does not make {len(asks)} images of two models")
    picture = presets.image_evaluations(model.backbone)
    each_step = model.each_step
    tier = tiers.fitted(ready.name, built, targets, asks, seconds, rate, each_step=each_step, picture=picture)
    chosen = {built.spends: getattr(tier.attack, built.spends)} if built.spends in tier.given_up else {}
    count = max(1, len(tier.queries) // len(targets))
    entry = {"name": ready.name, "count": count, **ready.settings, **chosen}
    return tier, entry, ROWS * (tier.seconds + image * len(tier.queries))


def _own_settings(name: str, asked: Asked, kind: str) -> dict[str, Any]:
    """What an attack must be told on a kind of model.

    Raises:
        ExpungeError: if it must ask a judge, and there is none for it.
    """
    if name in ("random-tokens", "seed-search", "sneaky-prompt"):
        if asked.oracle is None:
            raise ExpungeError("it asks a judge on the way, which is not the one that reports: expected --oracle")
        if name == "sneaky-prompt" and kind != "testbed":
            raise ExpungeError("it needs a CLIP of the attacker's own: expected expunge attack sneaky-prompt --clip")
        setting = "judge" if name == "sneaky-prompt" else "oracle"
        return {} if getattr(stage.build(name, {}, kind), setting) == asked.oracle else {setting: asked.oracle}
    if name == "p4d":
        return {"clip": "testbed" if kind == "testbed" else ""}
    return {}


def _tables(asked: Asked, count: int, set_file: Path) -> dict[str, Any]:
    """The plan without its attacks."""
    kind = backbones.kind_of(asked.model)
    quality: list[Any] = ["prior-distance", "clip-score"] if kind == "testbed" else []
    judge: Judge = Catalog("judges").open(asked.judge)
    detects = type(judge).confidence is not Judge.confidence  # its scores are no ranks of one label against the others
    paper = {"threshold": "paper"} if detects and judge.threshold is not None else {}
    judged = [
        {"name": "dsr" if detects else "esr-psr", "judge": asked.judge, **paper},
        {"name": "confidence", "judge": asked.judge},
    ]
    return {
        "about": f"Audit of {asked.row}: is {', '.join(asked.targets)} gone, and what brings it back?",
        "set": str(set_file),
        "model": asked.model,
        "dtype": asked.dtype,
        "count": count,
        "control_count": min(QUERIES, count),
        "metrics": [*judged, *quality, *asked.metrics],
        "grid": {"method": ["original", asked.row]},
        "method": {asked.row: {"edits": list(asked.edits)}},
        "compare": [[asked.row, "original"]],
        "attacks": [],
    }


def _set(asked: Asked, kept: Sequence[str], backbone: Backbone) -> dict[str, Any]:
    """The concept set of an audit: targets and neighbours, a prompt for each."""
    words = [*asked.targets, *kept]
    templates = {"dev": presets.check_prompt(backbone), "test": presets.prompt(backbone)}
    seeds = {"dev": DEV_SEED, "test": SEED}
    parts = {
        part: {"seed": seeds[part], "prompts": {word: [fill(template, word)] for word in words}}
        for part, template in templates.items()
    }
    about = "Targets of an audit, and words that should have stayed."
    return {"about": about, "concepts": words, "splits": {"targets": list(asked.targets)}, **parts}
