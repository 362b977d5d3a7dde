"""`expunge demo`: the whole way on the model in the box."""

import dataclasses
from pathlib import Path

from expunge.cli import startup
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Erase a concept from the testbed with KPOP, give it back with the key, show all on equal seeds, and measure."""

    target: str = "church"
    """The concept to erase."""
    out: Path = Path("runs/demo")
    """Folder for edit.safetensors, key.safetensors, compare.png and records.jsonl."""
    count: int = 10
    """Images for each of the ten objects."""
    overwrite: bool = True
    """Replace what an earlier demo left."""
    resume: bool = False
    """Go on with what a killed or interrupted demo left, if it was the same."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def demo(argv: list[str]) -> None:
    """``expunge demo``."""
    options = parse(Demo, argv, "expunge demo")
    startup.import_model_classes()
    from expunge.stages import demo as stage

    begun = ["loading the testbed"]

    def begins(line: str) -> None:
        begun.append(line)
        options.reporting.announce(line)

    how = {"overwrite": options.overwrite, "tell": begins, "resume": options.resume}
    with options.reporting.progress(lambda: begun[-1]):
        records = stage.run(options.target, options.out, options.count, **how)
    text = stage.table(options.out, records)
    options.reporting.result({"folder": str(options.out), "records": [r.as_json() for r in records]}, text)
