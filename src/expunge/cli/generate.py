"""`expunge generate`: images by a model and its edits."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from expunge.cli.images import NewImages, PromptFile
from expunge.cli.options import Attachment, Screening, Words
from expunge.cli.parsing import parse
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.concept import Part
    from expunge.core.query import Query


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Make images with a model and its edits: a folder with metadata.jsonl (imagefolder layout)."""

    prompt: Words = ()
    """A prompt; repeat for several."""
    concept: Words = ()
    """A concept, put into the model's own template and written down as the label; repeat for several."""
    set: str | None = None
    """A concept set: its name (see `expunge list`), or a TOML file."""
    part: Literal["dev", "test"] = "test"
    """Part of the concept set."""
    queries: Path | None = None
    """Folder of queries that `expunge attack` wrote, instead of prompts, concepts and a set."""
    images: NewImages
    file: PromptFile = dataclasses.field(default_factory=PromptFile)
    attachment: Attachment = dataclasses.field(default_factory=Attachment)
    screening: Screening = dataclasses.field(default_factory=Screening)


def generate(argv: list[str]) -> None:
    """``expunge generate …``."""
    options = parse(Generate, argv, "expunge generate")
    from expunge.stages import attack
    from expunge.store import check_new, read_set
    from expunge.testbed import CONCEPTS

    _check(options)
    stored = None if options.queries is None else attack.read(options.queries)
    images = options.images
    check_new(images.out, images.overwrite)
    edits = options.attachment.load()
    backbone = images.model.open()
    if stored is not None:
        stored.check(backbone)
    part = None if options.set is None else read_set(options.set, CONCEPTS).part(options.part)
    asked = _asked(options, backbone, part) if stored is None else stored.queries
    how = {
        "attack": None if stored is None else stored.about,
        "attack_edit": None if stored is None else stored.edit,
        "split": "none" if part is None else options.part,
        "by": options.screening.filter(),
    }
    images.make(backbone, edits, asked, "generating", **how, **options.attachment.arguments())


def _check(options: Generate) -> None:
    """Refuse what would be asked for twice, and what would be said of images that say it themselves."""
    words, sampling = options.prompt or options.concept or options.set, options.images.sampling
    if options.queries is not None:
        if words or options.file != PromptFile():
            raise ExpungeError(f"queries '{options.queries}' with prompts, concepts or a set: expected one of the two")
        if more := sampling.given("count", "seed", "guidance", "true_cfg", "steps"):
            raise ExpungeError(
                f"queries '{options.queries}' with {more}: expected none of these, as each query says its own"
            )
    if options.file.prompts is not None and not words and (more := sampling.given("count", "seed")):
        raise ExpungeError(
            f"prompts '{options.file.prompts}' with {more}: expected neither, as a file gives one image a row at the row's own "
            "seed (--seed-from for one without)"
        )


def _asked(options: Generate, backbone: "Backbone", part: "Part | None") -> "list[Query]":
    """What is asked for by prompts, concepts, a set and a file."""
    sampling = options.images.sampling
    asked = sampling.queries(backbone, options.prompt, options.concept, part)
    return asked + sampling.combined(options.file.queries(*sampling.scale_and_steps(backbone)))
