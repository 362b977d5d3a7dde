"""`expunge recover`: a concept given back by its key."""

import dataclasses
from pathlib import Path
from typing import Literal

from expunge.cli.images import NewImages
from expunge.cli.options import Paths, Words, load_edits, load_key
from expunge.cli.parsing import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recover:
    """Give an erased model a concept back with its private key: makes images as `expunge generate` does."""

    edit: Paths
    """The edit.safetensors the key belongs to, after any it was made on; repeat in order."""
    key: Path
    """The key.safetensors that was written beside it."""
    concept: Words = ()
    """A concept to bring back; all of the key's if not given."""
    control: Literal["own", "random", "other"] = "own"
    """Its own prompts, random ones of the same norms, or each concept with the next one's."""
    images: NewImages


def recover(argv: list[str]) -> None:
    """``expunge recover …``."""
    options = parse(Recover, argv, "expunge recover")
    from expunge.store import check_new

    images = options.images
    check_new(images.out, images.overwrite)
    edits, key = load_edits(options.edit), load_key(options.key)
    for concept in options.concept:
        key.only_for(concept)  # refuses a concept that it does not hold
    wrong = {"random": lambda: key.random(images.sampling.seed or 0), "other": key.rotated}
    attached = wrong[options.control]() if options.control in wrong else key
    backbone = images.model.open()
    asked = images.sampling.queries(backbone, concepts=options.concept or tuple(key.concepts))
    images.make(backbone, [*edits, attached], asked, "recovering", split="none", control=options.control)
