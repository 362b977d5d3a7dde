"""The commands that show: report, figure and label."""

import dataclasses
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from expunge.cli.options import Paths, Talk, Words, parse
from expunge.core.errors import ExpungeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """Draw a figure's JSON, which an analysis wrote, as SVG."""

    file: Positional[Path]
    """A .json file of a run's figures/."""
    out: Path
    """The .svg file."""
    overwrite: bool = False
    """Replace an earlier file."""
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def figure(argv: list[str]) -> None:
    """``expunge figure FILE``."""
    options = parse(Figure, argv, "expunge figure")
    from expunge.core.figure import Figure as Content
    from expunge.report.figures import svg
    from expunge.store import new_file, read_json

    drawn = svg(Content.from_json(read_json(options.file)))
    with new_file(options.out, options.overwrite) as temporary:
        temporary.write_text(drawn + "\n")
    options.talk.result({"figure": str(options.out)}, str(options.out))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Show a run as one HTML file that needs nothing else: images before and after, numbers, and what they do not show."""

    run: Positional[Path]
    """A folder that bench or demo wrote, or one that holds what erase, generate and measure wrote."""
    out: Path | None = None
    """The .html file; report.html in the run's folder if not given."""
    store: Path = Path("runs/store")
    """Folder of finished jobs, where a plan's images are."""
    images: int = 8
    """Images of each concept and method."""
    blur: Words = ()
    """A word whose images are covered until they are asked for, beside the unsafe ones; repeat for several."""
    overwrite: bool = False
    """Replace an earlier file."""
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def report(argv: list[str]) -> None:
    """``expunge report RUN``."""
    options = parse(Report, argv, "expunge report")
    from expunge.report import page
    from expunge.report.reading import read
    from expunge.store import check_new

    out = options.out or options.run / "report.html"
    found = read(options.run, options.store)
    check_new(out, options.overwrite)
    page.write(found, out, options.images, options.blur, options.overwrite)
    size = out.stat().st_size
    content = {"report": str(out), "bytes": size, "image_folders": len(found.sides), "image_folders_gone": found.gone}
    gone = f", {found.gone} image folders are gone" if found.gone else ""
    options.talk.result(content, f"{out}: {size / 1e6:.1f} MB{gone}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """Have people say what images show, blind to what made them; then compare them with a judge and with each other."""

    images: Positional[tuple[Path, ...]] = ()
    """Folders of images, for a new sheet."""
    out: Path | None = None
    """The sheet, an .html file; with --read, a .jsonl file for the agreements."""
    key: Path | None = None
    """What each item of the sheet is: written beside a new one (OUT.key.json if not given), and needed by --read."""
    choice: Words = ()
    """A label that may be chosen; repeat for several. The labels of the folders if not given."""
    count: int | None = None
    """Images of each folder, drawn at random; all if not given."""
    seed: int = 0
    """Seed of the order."""
    read: Paths = ()
    """Answers that a sheet saved (.json or .csv); repeat for several people."""
    judge: str | None = "testbed"
    """Whom people are compared with, as testbed:network=b; None for each other alone."""
    overwrite: bool = False
    """Replace earlier files."""
    talk: OmitArgPrefixes[Talk] = dataclasses.field(default_factory=Talk)


def label(argv: list[str]) -> None:
    """``expunge label IMAGES…``, and ``expunge label --read ANSWERS``."""
    options = parse(Label, argv, "expunge label")
    if bool(options.images) == bool(options.read):
        raise ExpungeError("expunge label: expected folders of images for a new sheet, or --read with answers to one")
    if options.read:
        _read_labels(options)
        return
    from expunge.report.labelling import write_sheet

    if options.out is None:
        raise ExpungeError("a sheet without --out: expected the .html file to write")
    key = options.key or options.out.with_suffix(".key.json")
    told = write_sheet(options.images, options.choice, options.out, key, options.seed, options.count, options.overwrite)
    content = {"sheet": str(options.out), "key": str(key), "images": len(told["items"]), "choices": told["choices"]}
    text = f"{options.out}: {len(told['items'])} images to label\n{key}: the key, to keep from those who label"
    options.talk.result(content, text)


def _read_labels(options: Label) -> None:
    from expunge.report import agreement
    from expunge.store import check_new, write_lines

    if options.key is None:
        raise ExpungeError("--read without --key: expected the key that was written beside the sheet")
    if options.out is not None:
        check_new(options.out, options.overwrite)
    found = agreement.read(options.read, options.key, options.judge)
    rows = [a.as_json() for a in found]
    if options.out is not None:
        write_lines(options.out, rows, overwrite=options.overwrite)
    options.talk.result({"agreements": rows}, agreement.table(found))
