"""The command that erases."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes

from expunge.cli.options import Model, Paths, Talk, Words, lenient, parse_with, say
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.concept import Concept
    from expunge.core.edit import Edit
    from expunge.core.eraser import Eraser
    from expunge.stages.search import Found, Tried


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erase:
    """Remove concepts: writes edit.safetensors."""

    target: Words
    """A concept to remove, in words; repeat for several."""
    retain: Words = ()
    """A concept to keep, in words; repeat for several."""
    out: Path
    """Folder for edit.safetensors (and key.safetensors, for a method with a private key)."""
    images: Words = ()
    """Folder of images for a method that wants some (the model makes them otherwise); TARGET=FOLDER for several targets."""
    on: Paths = ()
    """An edit the model already carries; repeat in order."""
    preset: bool = True
    """Start from the settings found for this kind of model, where there are any; otherwise the paper's."""
    check: bool = True
    """Look at a few images before and after, and say what is wrong (not for a large model on a CPU, unless told how many)."""
    check_images: int | None = None
    """How many images a word are looked at; the preset's if not given."""
    until: Words = ()
    """Search the method's strength until this much is erased, such as esr@1=0.97; another, such as psr@1=-0.05 (the default),
    says what that may cost the words to keep. On images that no result is reported on."""
    budget: int = 8
    """Erasures that a search may try."""
    judge: str = "testbed"
    """Who tells a search what images show."""
    seed: int = 0
    """Seed of whatever the method draws."""
    overwrite: bool = False
    """Replace an existing edit."""
    model: OmitArgPrefixes[Model] = dataclasses.field(default_factory=Model)
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def erase(argv: list[str]) -> None:
    """``expunge erase METHOD …``."""
    from expunge.core.catalog import Catalog

    if not argv or argv[0] in ("-h", "--help"):
        rows = "\n".join(f"  {e.name:18} {e.summary}" for e in Catalog("erasers").entries().values())
        say(f"usage: expunge erase METHOD --target WORDS --out FOLDER [options]\n\nmethods:\n{rows}\n\n"
            "expunge erase METHOD --help lists a method's settings.")  # fmt: skip
        return
    method, rest = argv[0], argv[1:]
    from expunge import backbones
    from expunge.stages import erase as stage
    from expunge.stages import presets
    from expunge.stages.check import warn

    kind = backbones.kind_of(lenient(Model, rest).model)
    use = {} if "--no-preset" in rest else presets.eraser(method, kind)
    start = stage.build(method, use, None)
    parsed = parse_with(start, method, Erase, rest, f"expunge erase {method}")
    options: Erase = parsed.options
    backbone = options.model.open()
    searching = _Searching(options) if options.until else None
    cheap = backbone.kind == "testbed" or options.model.device != "cpu"
    look = options.check_images or (presets.check_images(backbone) if cheap else None) if options.check else None
    with options.talk.progress(f"erasing with {method}", getattr(parsed.settings, "iterations", 1)) as advance:
        done = stage.to_folder(
            backbone,
            method,
            parsed.settings,
            stage.concepts(options.target),
            list(options.retain),
            options.out,
            attached=options.on,
            images=_image_folders(options.images, options.target),
            seed=options.seed,
            overwrite=options.overwrite,
            look=look,
            make=searching or stage.run,
            on_step=None if advance is None else lambda _: advance(1),
        )
    cost = done.edit.provenance.cost.equivalents if done.edit.provenance else 0
    note = f"preset {use} for {kind}; " if use else ""
    options.talk.result(
        {
            "edit": str(done.path),
            "key": None if done.key is None else str(done.key),
            "id": done.edit.id,
            "seconds": done.seconds,
            "forward_equivalents": cost,
            "preset": use,
            "check": None
            if done.looks is None
            else {**dataclasses.asdict(done.looks), "problems": done.looks.problems},
            "search": None if searching is None else searching.as_json(),
        },
        f"{done.path}: {', '.join(options.target)} removed by {method} ({note}{done.seconds:.1f} s, cost {cost} forwards)"
        + ("" if done.key is None else f"\n{done.key}: the private key, which brings it back (keep it to yourself)")
        + ("" if done.looks is None else f"\n{done.looks.told()}")
        + ("" if searching is None or searching.found is None else f"\n{searching.found.told()}"),
    )
    if done.looks is not None:
        warn(done.looks)


class _Searching:
    """Erases by a search, and remembers what it found."""

    def __init__(self, options: Erase) -> None:
        from expunge.stages.search import Goal

        self.talk = options.talk
        self.goal = Goal.parsed(options.until, budget=options.budget, judge=options.judge)
        self.found: "Found | None" = None

    def __call__(
        self,
        backbone: "Backbone",
        method: str,
        eraser: "Eraser",
        targets: "list[Concept]",
        retain: list[str],
        **how: Any,
    ) -> "Edit":
        from expunge.stages.search import search

        found = search(backbone, method, eraser, targets, retain, self.goal, **how, on_tried=self._tell)
        self.found = found
        return found.edit

    def _tell(self, row: "Tried") -> None:
        self.talk.tell(f"strength {row.times:.3g}: ESR-1 {row.esr.value:.0f}, PSR-1 lost {row.lost:.1f} points")

    def as_json(self) -> dict[str, Any]:
        """What was found, for ``--json``."""
        if self.found is None:
            return {}
        rows = [row._asdict() for row in self.found.tried]
        return {"reached": self.found.reached, "chosen": self.found.best._asdict(), "tried": rows}


def _image_folders(given: Sequence[str], targets: Sequence[str]) -> dict[str, Path]:
    """Folders by target, from FOLDER or TARGET=FOLDER."""
    from expunge.stages.erase import concepts, folders

    parts = [word.partition("=") for word in given]
    named = {name: path for name, sign, path in parts if sign and name in targets}
    bare = [word for word in given if word.partition("=")[0] not in named]
    if len(bare) > 1 or (bare and named):
        raise ExpungeError(f"images '{bare[0]}' beside others: expected one folder, or TARGET=FOLDER for each target")
    return folders(bare[0] if bare else named, concepts(targets))
