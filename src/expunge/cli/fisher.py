"""`expunge fisher`: the Fisher information of a model, for methods that hold to it."""

import dataclasses
from pathlib import Path

from expunge.cli.options import Model, Paths, Words, load_edits
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fisher:
    """Measure how much each parameter matters to images that should stay: for `expunge erase selective-amnesia --fisher`."""

    out: Path
    """The file to write: fisher.safetensors."""
    replay: Words = ()
    """Prompt of what should stay; repeat for several. This project's own scenes if not given."""
    retain: Words = ()
    """A concept to keep, in words; repeat for several."""
    retain_prompt: str = "a photo of {}"
    """The phrase that these are put into."""
    images: Path | None = None
    """Folder of images with their prompts (metadata.jsonl); the model makes them if not given."""
    count: int = 5000
    """Images that the model makes."""
    fisher_images: int = 5000
    """How many of them, or of yours, are looked at."""
    fisher_timesteps: int = 1000
    """Timesteps of each, one from each of so many equal parts; the paper's are all 1000."""
    fisher_rows: int = 8
    """How many of these at a time; as many as fit into memory."""
    group: str = "full"
    """Parameters that it is of; the eraser may train these or fewer."""
    on: Paths = ()
    """An edit the model already carries; repeat in order."""
    seed: int = 0
    """Seed of all that is drawn; the erasure's, for the same images."""
    overwrite: bool = False
    """Replace an existing file."""
    resume: bool = False
    """Go on from the checkpoint that a killed or interrupted run of the same command left, if there is one."""
    model: Model = dataclasses.field(default_factory=Model)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def fisher(argv: list[str]) -> None:
    """``expunge fisher …``."""
    options = parse(Fisher, argv, "expunge fisher")
    from expunge.cli.evaluations import evaluations
    from expunge.maths.fisher import REPLAY, SCENES
    from expunge.stages import fisher as stage
    from expunge.store import check_new

    wish = stage.Wish(
        group=options.group,
        replay=options.replay or SCENES,
        retain=options.retain,
        retain_prompt=options.retain_prompt,
        count=options.count,
        images=options.fisher_images,
        timesteps=options.fisher_timesteps,
        rows=options.fisher_rows,
        seed=options.seed,
    )
    check_new(options.out, options.overwrite)
    backbone = options.model.open()
    given = {} if options.images is None else {REPLAY: options.images}
    work = evaluations(backbone, wish.cost(), {REPLAY: [""] * wish.count}, given)
    with backbone.attached(load_edits(options.on)), options.reporting.progress("Fisher pass", *work):
        how = {"images": options.images, "overwrite": options.overwrite, "go_on": options.resume}
        made = stage.make(backbone, wish, options.out, **how)
    cost = made.cost.equivalents
    options.reporting.result(
        {
            "file": str(made.file),
            "id": made.id,
            "images": made.images,
            "parameters": made.parameters,
            "forward_equivalents": cost,
        },
        f"{made.file}: Fisher information of {made.parameters:,} parameters by {made.images} images "
        f"({cost:,} forward-equivalents)",
    )
