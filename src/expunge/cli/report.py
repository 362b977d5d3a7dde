"""The commands that show: report, figure and label."""

import dataclasses
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from expunge.cli.options import Talk, parse


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
