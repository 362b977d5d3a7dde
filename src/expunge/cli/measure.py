"""`expunge measure METRIC`: numbers about a folder of images."""

import dataclasses
import warnings
from pathlib import Path
from typing import Annotated

from expunge.cli.options import Words
from expunge.cli.plug_ins import called
from expunge.cli.reporting import Reporting, record_line
from expunge.core.errors import ExpungeWarning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure a folder of images: prints records, and adds them to a file."""

    images: Annotated[Path, "-i"]
    """Folder made by `expunge generate`."""
    target: Words = ()
    """A concept that should be gone; the edits' own targets if not given."""
    retain: Words = ()
    """A concept that should have stayed; every other label in the folder if not given."""
    reference: Path | None = None
    """Folder to compare with: the original model's images of the same prompts; for fid and kid, photographs too."""
    out: Path | None = None
    """A .jsonl file to add the records to."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def measure(argv: list[str]) -> None:
    """``expunge measure METRIC …``."""
    name, options, settings = called("metrics", Measure, argv, "measure")
    from expunge.results.newest import mark
    from expunge.stages import measure as stage
    from expunge.store import write_records

    metric = stage.build(name, settings)
    aims, kept = options.target or None, options.retain or None
    with options.reporting.progress(f"measuring with {name}"):
        records = stage.measure(metric, name, options.images, aims, kept, options.reference)
    if any(r.knowledge.get("same_judge") for r in records):
        judge = settings.get("judge", getattr(metric, "judge", ""))
        line = f"{judge} was asked by what made these images, so its word flatters them: expected another judge"
        warnings.warn(line, ExpungeWarning, stacklevel=2)
    measured = None if options.out is None else mark(options.images, options.out)
    if options.out is not None:
        write_records(options.out, records, append=True, measured=measured)
    rows = [{**r.as_json(), **({"measured": measured} if measured else {})} for r in records]
    options.reporting.result({"records": rows}, "\n".join(map(record_line, records)))
