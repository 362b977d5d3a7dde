"""`expunge analyse NAME`: a look inside an edited model."""

import dataclasses
from pathlib import Path

from expunge.cli.evaluations import evaluations
from expunge.cli.options import Model, Paths, Words, load_edits, load_key
from expunge.cli.plug_ins import called
from expunge.cli.reporting import Reporting, record_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analyse:
    """Look into a model with its edits: writes records.jsonl and figures/*.json."""

    edit: Paths = ()
    """An edit.safetensors to look at; repeat in order."""
    key: Path | None = None
    """The key.safetensors that was written beside it."""
    target: Words = ()
    """A concept that is erased; the edits' own targets if not given."""
    retain: Words = ()
    """A concept that should have stayed; the edits' own retained words if not given."""
    seed: int = 0
    """First seed of the images."""
    out: Path
    """Folder for records and figures."""
    overwrite: bool = False
    """Replace an earlier analysis."""
    model: Model = dataclasses.field(default_factory=Model)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def analyse(argv: list[str]) -> None:
    """``expunge analyse NAME …``."""
    name, options, settings = called("analyses", Analyse, argv, "analyse")
    from expunge.results.files import FIGURES, RECORDS
    from expunge.stages import analyse as stage
    from expunge.store import new_folder, write_records

    analysis = stage.build(name, settings)
    key = None if options.key is None else load_key(options.key)
    edits = load_edits(options.edit)
    with new_folder(options.out, options.overwrite, marker=RECORDS) as out:
        backbone = options.model.open()
        with options.reporting.progress(f"analysing with {name}", *evaluations(backbone)):
            what = stage.study(backbone, analysis, edits, key, options.target, options.retain, options.seed)
            measured = stage.run(backbone, name, analysis, what, stage.provenances(edits), out)
        records = [m.record for m in measured]
        write_records(out / RECORDS, records)
    lines = [*map(record_line, records), f"{options.out}: records.jsonl, {FIGURES}/"]
    options.reporting.result({"folder": str(options.out), "records": [r.as_json() for r in records]}, "\n".join(lines))
