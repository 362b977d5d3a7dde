"""The command that attacks."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import OmitArgPrefixes

from expunge.cli.options import (
    Images,
    Model,
    Numbers,
    Paths,
    Talk,
    Words,
    in_effect,
    kind_asked,
    parse_with,
    say,
    strength_of,
    told_settings,
)
from expunge.cli.progress import duration
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.query import Query


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """Look for queries that bring erased concepts back: writes them for `expunge generate --queries`."""

    target: Words
    """A concept to bring back, in words; repeat for several."""
    edit: Paths = ()
    """An edit.safetensors of the model that is attacked; repeat in order. None: the original, to calibrate on."""
    strength: Numbers = ()
    """How strongly edits that have weights are attached: 0.5 is half way; repeat for one of each edit."""
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
    model: OmitArgPrefixes[Model] = dataclasses.field(default_factory=Model)
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def attack(argv: list[str]) -> None:
    """``expunge attack METHOD …``."""
    from expunge.core.catalog import Catalog

    if not argv or argv[0] in ("-h", "--help"):
        rows = "\n".join(f"  {e.name:18} {e.summary}" for e in Catalog("attacks").entries().values())
        say(f"usage: expunge attack METHOD --edit FILE --target WORDS --out FOLDER [options]\n\nattacks:\n{rows}\n\n"
            "expunge attack METHOD --help lists an attack's settings.")  # fmt: skip
        return
    name, rest = argv[0], argv[1:]
    from expunge.settings import presets
    from expunge.stages import attack as stage

    kind = kind_asked(rest)
    use = {} if "--no-preset" in rest else presets.attack(name, kind)
    parsed = parse_with(stage.build(name, use), name, Attack, rest, f"expunge attack {name}")
    options: Attack = parsed.options
    from expunge.cli.erasing import image_folders, spending
    from expunge.stages.erase import concepts
    from expunge.store import check_new, load_edit, reserved

    check_new(options.out, options.overwrite)
    targets = concepts(options.target)
    folders = image_folders(options.concept_images, parsed.settings.needs(targets))
    edits, backbone = [load_edit(path) for path in options.edit], options.model.open()
    asked = _asked(options, backbone)
    use = in_effect(use, parsed.settings)
    note = f" (preset for {kind}: {told_settings(use)})" if use else ""
    options.talk.tell(f"attacking with {name}{note}: {len(asked)} queries")
    foreseen = spending(
        backbone,
        parsed.settings.foreseen(len(targets), len(asked), asked[0].steps if asked else 0),
        parsed.settings.needs(targets),
        folders,
    )
    with reserved(options.out, options.overwrite):
        with options.talk.progress(f"attacking with {name}", *foreseen):
            strength = strength_of(options.strength)
            found = stage.run(backbone, name, parsed.settings, edits, targets, asked, options.seed, folders, strength)
        stage.to_folder(found, options.out, options.overwrite)
    cost: Any = found.about["cost"]
    spent = f"{cost['forward'] + 3 * cost['trained']:,} forward-equivalents"
    told = f"{options.out}: {len(found.queries)} queries ({duration(found.about['seconds'])}, {spent}, {found.about['access']})"
    content = {"folder": str(options.out), "queries": len(found.queries), "about": dict(found.about)}
    options.talk.result(content, told)


def _asked(options: Attack, backbone: "Backbone") -> "list[Query]":
    """The queries to make adversarial, each labelled with the target it asks for."""
    from expunge.store import read_set
    from expunge.testbed import CONCEPTS

    if options.prompt and (len(options.target) > 1 or options.set):
        raise ExpungeError(
            f"prompt '{options.prompt[0]}' with several targets or a set: expected prompts for a single target, or none"
        )
    how = {"seed": options.query_seed, "guidance": options.query_guidance, "steps": options.query_steps}
    images = Images(count=options.count, out=options.out, **how)
    if options.prompt:
        target = "".join(options.target)  # the only one
        return [dataclasses.replace(q, label=target) for q in images.asked(backbone, options.prompt)]
    if options.set is None:
        return images.asked(backbone, concepts=options.target)
    part = read_set(options.set, CONCEPTS).part(options.part)
    return [q for q in images.asked(backbone, part=part) if q.label in options.target]
