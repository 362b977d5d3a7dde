"""`expunge attack METHOD`: queries that bring an erased concept back."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from expunge.cli.evaluations import evaluations
from expunge.cli.folders import image_folders
from expunge.cli.options import Edits, Model, Sampling, Words
from expunge.cli.plug_ins import called, in_effect
from expunge.cli.reporting import Reporting, settings_line
from expunge.core.errors import ExpungeError
from expunge.core.times import duration

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.query import Query
    from expunge.stages.attack import Attacked
    from expunge.stages.tiers import Tier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """Look for queries that bring erased concepts back: writes them for `expunge generate --queries`."""

    target: Words
    """A concept to bring back, in words; repeat for several."""
    prompt: Words = ()
    """A prompt to make adversarial, for a single target; the model's own template for each target if none is given."""
    set: str | None = None
    """A concept set whose prompts for the targets are made adversarial: its name, or a TOML file."""
    part: Literal["dev", "test"] = "test"
    """Part of the concept set."""
    concept_images: Words = ()
    """Folder of images of the concept for an attack that wants some (the original model makes them otherwise); TARGET=FOLDER
    for several."""
    count: int | None = None
    """Queries for each prompt; 4 if not given."""
    query_seed: int | None = None
    """First seed of the queries' images; the concept set's own if one is given, or 0."""
    query_guidance: float | None = None
    """Scale of classifier-free guidance that queries ask for; the model's own if not given."""
    query_steps: int | None = None
    """Denoising steps that queries ask for; the model's own if not given."""
    most: int | None = None
    """Attack so many queries at most: of every target as many, and of each its prompts' first seeds."""
    budget: str | None = None
    """Time that the attack may take here, such as 1m, 10m or 1h: queries are given up for it, then the attack's updates,
    generations or tries, and it is said what. The settings chosen are stored, and give the same again without it."""
    preset: bool = True
    """Start from the settings found for this kind of model, where there are any; otherwise the paper's."""
    seed: int = 0
    """Seed of whatever the attack draws."""
    out: Path
    """Folder for queries.json and the vectors of learned words."""
    overwrite: bool = False
    """Replace an existing folder."""
    edits: Edits = dataclasses.field(default_factory=Edits)
    model: Model = dataclasses.field(default_factory=Model)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)

    @property
    def sampling(self) -> Sampling:
        """How the queries ask for images."""
        return Sampling(
            count=self.count,
            seed=self.query_seed,
            guidance=self.query_guidance,
            steps=self.query_steps,
        )


def attack(argv: list[str]) -> None:
    """``expunge attack METHOD …``."""
    name, options, given = called("attacks", Attack, argv, "attack")
    from expunge.core.query import predictions_of
    from expunge.settings import presets
    from expunge.stages import attack as stage
    from expunge.stages import tiers
    from expunge.stages.erase import concepts
    from expunge.store import check_new, reserved

    kind = options.model.kind()
    use = presets.attack(name, kind) if options.preset else {}
    settings = stage.build(name, given, kind if options.preset else None)
    seconds = None if options.budget is None else tiers.seconds_of(options.budget)
    check_new(options.out, options.overwrite)
    targets = concepts(options.target)
    settings.check(targets)
    if settings.own_prompts and (options.prompt or options.set or options.count is not None):
        raise ExpungeError(f"{name} asks with prompts of its own: expected no --prompt, --set or --count")
    needs = settings.needs(targets)
    folders = image_folders(options.concept_images, needs)
    edits, backbone = options.edits.load(), options.model.open()
    asked, distilled = _asked(options, backbone), backbone.supports("distilled")
    use = in_effect(use, settings)
    tier = None
    if seconds is not None:
        with backbone.attached(edits, options.edits.strengths):
            rate = tiers.measured(backbone, getattr(settings, "batch", presets.batch(backbone)))
        tier = tiers.fitted(
            *(name, settings, targets, asked, seconds, rate),
            each_step=predictions_of(asked, distilled),
            picture=presets.image_evaluations(backbone),
            given=list(folders),
        )
        settings, asked = tier.attack, tier.queries
        options.reporting.announce(f"--budget {options.budget}: {tier.line()}{_again(tier)}")
    note = f" (preset for {kind}: {settings_line(use)})" if use else ""
    options.reporting.announce(f"attacking with {name}{note}: {settings.asks(targets, len(asked))} queries")
    steps = asked[0].steps if asked else 0
    foreseen = settings.foreseen(len(targets), len(asked), steps, predictions_of(asked, distilled))
    work = evaluations(backbone, foreseen, needs, folders)
    with reserved(options.out, options.overwrite):
        with options.reporting.progress(f"attacking with {name}", *work):
            attacked = stage.run(
                backbone, name, settings, edits, targets, asked, options.seed, folders, options.edits.strengths
            )
        if tier is not None:
            attacked = attacked.within({"budget": options.budget, **tier.as_json()})
        stage.to_folder(attacked, options.out, options.overwrite)
    _report(options, attacked)


def _again(tier: "Tier") -> str:
    """The options that give the same without the budget."""
    flags = {key: "--most" if key == "queries" else f"--{key.replace('_', '-')}" for key in tier.given_up}
    words = " ".join(f"{flags[key]} {now}" for key, (_, now) in tier.given_up.items())
    return f"; the same again without it: {words}" if words else ""


def _report(options: Attack, attacked: "Attacked") -> None:
    """Where the queries are, and what they took."""
    cost: Any = attacked.about["cost"]
    spent = f"{cost['forward'] + 3 * cost['trained']:,} forward-equivalents"
    took = f"{duration(attacked.about['seconds'])}, {spent}, {attacked.about['access']}"
    content = {"folder": str(options.out), "queries": len(attacked.queries), "about": dict(attacked.about)}
    options.reporting.result(content, f"{options.out}: {len(attacked.queries)} queries ({took})")


def _asked(options: Attack, backbone: "Backbone") -> "list[Query]":
    """The queries to make adversarial, each labelled with the target it asks for."""
    from expunge.stages.tiers import first
    from expunge.store import read_set
    from expunge.testbed import CONCEPTS

    if options.most is not None and options.most < len(options.target):
        raise ExpungeError(f"--most {options.most}: expected as many queries as there are targets, or more")
    if options.prompt and (len(options.target) > 1 or options.set):
        raise ExpungeError(
            f"prompt '{options.prompt[0]}' with several targets or a set: expected prompts for a single target, or none"
        )
    sampling = options.sampling
    if options.prompt:
        target = "".join(options.target)  # the only one
        asked = [dataclasses.replace(q, label=target) for q in sampling.queries(backbone, options.prompt)]
    elif options.set is None:
        asked = sampling.queries(backbone, concepts=options.target)
    else:
        part = read_set(options.set, CONCEPTS).part(options.part)
        asked = [q for q in sampling.queries(backbone, part=part) if q.label in options.target]
    return asked if options.most is None else first(asked, options.most)
