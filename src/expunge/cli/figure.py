"""`expunge figure FILE`: an analysis's figure as SVG."""

import dataclasses
from pathlib import Path

from expunge.cli.parsing import Positional, parse
from expunge.cli.reporting import Reporting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """Draw a figure's JSON, which an analysis wrote, as SVG."""

    file: Positional[Path]
    """A .json file of a run's figures/."""
    out: Path
    """The .svg file."""
    overwrite: bool = False
    """Replace an earlier file."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def figure(argv: list[str]) -> None:
    """``expunge figure FILE``."""
    options = parse(Figure, argv, "expunge figure")
    from expunge.report.figures import draw

    draw(options.file, options.out, options.overwrite)
    options.reporting.result({"figure": str(options.out)}, str(options.out))
