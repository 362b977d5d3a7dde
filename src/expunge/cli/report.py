"""The commands that show: report, figure and label."""

import dataclasses
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from expunge.cli.options import Talk, Words, parse


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
    from expunge.report.figures import svg
    from expunge.store import new_file, read_json

    drawn = svg(read_json(options.file))
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
    from expunge.report.run import read
    from expunge.store import check_new

    out = options.out or options.run / "report.html"
    found = read(options.run, options.store)
    check_new(out, options.overwrite)
    page.write(found, out, options.images, options.blur, options.overwrite)
    size = out.stat().st_size
    content = {"report": str(out), "bytes": size, "image_folders": len(found.sides), "image_folders_gone": found.gone}
    gone = f", {found.gone} image folders are gone" if found.gone else ""
    options.talk.result(content, f"{out}: {size / 1e6:.1f} MB{gone}")
