"""`expunge screen`: what a folder of images shows."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from expunge.cli.options import Screening
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expunge.stages.filters import Filter, Roc, Screened


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screen:
    """Look through a folder of images for concepts and words: prints what is found, keeps the rest if told where.

    Ends with code 2 if a file could not be looked at; such files are listed, and never kept.
    """

    images: Annotated[Path, "-i"]
    """Folder of images and of folders of them, with or without metadata.jsonl; each frame of an animation is looked at."""
    out: Path | None = None
    """A .jsonl file for what was found in each image."""
    keep: Path | None = None
    """A new folder for the images in which nothing was found, with their metadata."""
    roc: bool = False
    """Take the labels in the metadata for the truth: show what each threshold would hold back, of the concepts and the rest."""
    overwrite: bool = False
    """Replace an earlier file or folder."""
    screening: Screening = dataclasses.field(default_factory=Screening)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def screen(argv: list[str]) -> None:
    """``expunge screen …``."""
    options = parse(Screen, argv, "expunge screen")
    from expunge.stages import filters
    from expunge.store import check_new, write_lines

    by = _filter(options)
    for path in (options.out, options.keep):
        if path is not None:
            check_new(path, options.overwrite)
    with options.reporting.progress("screening"):
        screened = filters.screen(options.images, by)
    known = [s for s in screened if s.looked_at and s.label is not None]
    truth = [s.label in by.concepts for s in known]
    curve = filters.roc([s.confidence for s in known], truth) if options.roc else None
    if options.keep is not None:
        filters.keep(options.images, screened, options.keep, options.overwrite)
    if options.out is not None:
        write_lines(options.out, [dataclasses.asdict(s) for s in screened], overwrite=options.overwrite)
    _report(options, screened, curve)


def _filter(options: Screen) -> "Filter":
    """The filter that is asked for."""
    by = options.screening.filter()
    if by is None:
        raise ExpungeError("nothing to screen for: expected --hold-concept, --hold-word or --hold-prompt")
    if options.roc and not by.concepts:
        raise ExpungeError("--roc of prompts alone: expected --hold-concept, of which a judge is more or less sure")
    return by


def _report(options: Screen, screened: "Sequence[Screened]", curve: "Roc | None") -> None:
    """What was found, and what could not be looked at; the latter is an error in the end."""
    held = [s for s in screened if s.reason and s.looked_at]
    left = [s for s in screened if not s.looked_at]
    looked = len(screened) - len(left)
    lines = [f"{s.file_name}: {s.reason} ({s.confidence:.2f})" for s in held]
    lines += [f"{s.file_name}: not looked at: {s.reason}" for s in left]
    lines.append(f"{len(held)} of {looked} images held back, {len(left)} not looked at")
    content: dict[str, Any] = {"images": looked}
    content |= {"held": [dataclasses.asdict(s) for s in held], "left": [dataclasses.asdict(s) for s in left]}
    if curve is not None:
        lines.append("threshold  caught %  false alarms %")
        lines += ["{:9.2f}  {:8.1f}  {:14.1f}".format(*p) for p in curve.points]
        lines.append(f"area under the curve {curve.area:.4f}")
        content["roc"] = {"area": curve.area, "points": [p._asdict() for p in curve.points]}
    options.reporting.result(content, "\n".join(lines))
    if left:
        raise ExpungeError(
            f"{len(left)} files of '{options.images}' were not looked at, the first '{left[0].file_name}': {left[0].reason}"
        )
