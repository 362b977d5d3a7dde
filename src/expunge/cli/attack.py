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
    count: int = 4
    """Queries for each prompt."""
    query_seed: int | None = None
    """First seed of the queries' images; the concept set's own if one is given, or 0."""
    query_guidance: float | None = None
    """Scale of classifier-free guidance that queries ask for; the model's own if not given."""
    query_steps: int | None = None
    """Denoising steps that queries ask for; the model's own if not given."""
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
        return Sampling(count=self.count, seed=self.query_seed, guidance=self.query_guidance, steps=self.query_steps)


def attack(argv: list[str]) -> None:
    """``expunge attack METHOD …``."""
    name, options, given = called("attacks", Attack, argv, "attack")
    from expunge.settings import presets
    from expunge.stages import attack as stage
    from expunge.stages.erase import concepts
    from expunge.store import check_new, reserved

    kind = options.model.kind()
    use = presets.attack(name, kind) if options.preset else {}
    settings = stage.build(name, given, kind if options.preset else None)
    check_new(options.out, options.overwrite)
    targets = concepts(options.target)
    needs = settings.needs(targets)
    folders = image_folders(options.concept_images, needs)
    edits, backbone = options.edits.load(), options.model.open()
    asked = _asked(options, backbone)
    use = in_effect(use, settings)
    note = f" (preset for {kind}: {settings_line(use)})" if use else ""
    options.reporting.announce(f"attacking with {name}{note}: {len(asked)} queries")
    foreseen = settings.foreseen(len(targets), len(asked), asked[0].steps if asked else 0)
    work = evaluations(backbone, foreseen, needs, folders)
    with reserved(options.out, options.overwrite):
        with options.reporting.progress(f"attacking with {name}", *work):
            attacked = stage.run(
                backbone, name, settings, edits, targets, asked, options.seed, folders, options.edits.strengths
            )
        stage.to_folder(attacked, options.out, options.overwrite)
    _report(options, attacked)


def _report(options: Attack, attacked: "Attacked") -> None:
    """Where the queries are, and what they took."""
    cost: Any = attacked.about["cost"]
    spent = f"{cost['forward'] + 3 * cost['trained']:,} forward-equivalents"
    took = f"{duration(attacked.about['seconds'])}, {spent}, {attacked.about['access']}"
    content = {"folder": str(options.out), "queries": len(attacked.queries), "about": dict(attacked.about)}
    options.reporting.result(content, f"{options.out}: {len(attacked.queries)} queries ({took})")


def _asked(options: Attack, backbone: "Backbone") -> "list[Query]":
    """The queries to make adversarial, each labelled with the target it asks for."""
    from expunge.store import read_set
    from expunge.testbed import CONCEPTS

    if options.prompt and (len(options.target) > 1 or options.set):
        raise ExpungeError(
            f"prompt '{options.prompt[0]}' with several targets or a set: expected prompts for a single target, or none"
        )
    sampling = options.sampling
    if options.prompt:
        target = "".join(options.target)  # the only one
        return [dataclasses.replace(q, label=target) for q in sampling.queries(backbone, options.prompt)]
    if options.set is None:
        return sampling.queries(backbone, concepts=options.target)
    part = read_set(options.set, CONCEPTS).part(options.part)
    return [q for q in sampling.queries(backbone, part=part) if q.label in options.target]
