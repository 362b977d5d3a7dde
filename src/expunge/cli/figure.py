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
    from expunge.core.figure import Figure as Content
    from expunge.report.figures import svg
    from expunge.store import new_file, read_json

    drawn = svg(Content.from_json(read_json(options.file)))
    with new_file(options.out, options.overwrite) as temporary:
        temporary.write_text(drawn + "\n")
    options.reporting.result({"figure": str(options.out)}, str(options.out))
