"""`expunge pairs`: unsafe and safe images, for methods that learn from them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.cli.options import Model, Words
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.stages.pairs import Pairs as Made
    from expunge.stages.pairs import Wish


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Make pairs of images, unsafe and safe, with the model, or put your own together: for `expunge erase duo --images`."""

    unsafe: Words = ()
    """Prompt of unsafe images; repeat for several."""
    safe: Words = ()
    """Prompt that they are redrawn with, the unsafe one as its negative prompt; one for each."""
    phrase: Words = ()
    """What prompts are put into, {} each of them: every --unsafe thing is redrawn as every --safe one in each phrase."""
    target: str | None = None
    """The concept that the judge must see in the unsafe image, and must not see in the safe one."""
    keep: Words = ()
    """A concept that it must see in both; or, repeated, one for each prompt."""
    count: int = 64
    """Pairs of each prompt."""
    strength: float = 0.75
    """Share of the denoising steps that redraw the unsafe image; 0.8 for violence."""
    tries: int = 20
    """Images that may be drawn for one that is accepted."""
    judge: str | None = None
    """Who looks; on the testbed its judge B. It must not be the judge that reports."""
    threshold: float = 0.25
    """From which confidence on the judge sees a concept, 0 to 1."""
    unsafe_images: Path | None = None
    """Your own unsafe images, instead of prompts."""
    safe_images: Path | None = None
    """Your own safe images: each with the file name of its other half."""
    guidance: float | None = None
    """Scale of classifier-free guidance; the model's own if not given."""
    steps: int | None = None
    """Denoising steps; the model's own if not given."""
    batch: int | None = None
    """Images at a time; the model's own if not given."""
    seed: int = 0
    """Seed of all that is drawn."""
    out: Path
    """Folder for the pairs, their metadata.jsonl, and sheet.png, which shows them all."""
    overwrite: bool = False
    """Replace an existing folder."""
    model: Model = dataclasses.field(default_factory=Model)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def pairs(argv: list[str]) -> None:
    """``expunge pairs …``."""
    options = parse(Pairs, argv, "expunge pairs")
    from expunge.stages import pairs as stage
    from expunge.store import check_new

    check_new(options.out, options.overwrite)
    made = _taken(options) if options.unsafe_images or options.safe_images else _drawn(options)
    drawn = f" ({made.drawn} images drawn)" if made.drawn else ""
    options.reporting.result(
        {"folder": str(made.folder), "pairs": made.count, "drawn": made.drawn},
        f"{made.folder}: {made.count} pairs{drawn}; see {made.folder / stage.SHEET}",
    )


def _taken(options: Pairs) -> "Made":
    """Pairs of the user's own images."""
    from expunge.stages import pairs as stage

    prompts = [*options.unsafe, *options.safe]
    if options.unsafe_images is None or options.safe_images is None or prompts:
        extra = f"prompt '{prompts[0]}'" if prompts else "one folder"
        raise ExpungeError(
            f"{extra} with images of your own: expected --unsafe-images and --safe-images, and no prompt"
        )
    return stage.take(options.unsafe_images, options.safe_images, options.out, options.overwrite)


def _drawn(options: Pairs) -> "Made":
    """Pairs that the model draws."""
    from expunge.stages import pairs as stage

    wish = _wish(options)
    with options.reporting.progress("drawing pairs", 2 * wish.count * len(wish.unsafe), "images accepted") as advance:
        how = {"guidance": options.guidance, "steps": options.steps, "batch": options.batch}
        how |= {"overwrite": options.overwrite, "on_accepted": advance}
        return stage.make(options.model.open(), wish, options.out, **how)


def _wish(options: Pairs) -> "Wish":
    """Which pairs are asked for."""
    from expunge.stages import pairs as stage

    names = ("unsafe", "safe", "count", "strength", "target", "keep", "judge", "threshold", "tries", "seed")
    wanted: dict[str, Any] = {name: getattr(options, name) for name in names}
    if len(options.keep) < 2:
        wanted["keep"] = next(iter(options.keep), None)
    if options.phrase:
        wanted |= stage.crossed(options.phrase, options.unsafe, options.safe)._asdict()
    return stage.Wish(**wanted)
