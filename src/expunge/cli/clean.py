"""`expunge clean`: what finished jobs take on disk."""

import dataclasses
from pathlib import Path
from typing import Literal

from expunge.cli.parsing import Repeated, parse
from expunge.cli.reporting import Reporting

Room = Literal[
    "pairs",
    "wanted",
    "fisher",
    "erase",
    "given",
    "difference",
    "memory",
    "attack",
    "relearn",
    "generate",
    "measure",
    "analyse",
    "leftovers",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clean:
    """Show what finished jobs take on disk, and free it."""

    room: Repeated[tuple[Room, ...]] = ()
    """What to delete: pairs, images that methods want, Fisher files, edits, copies of given ones, edits that other models
    are, counts of memory, attacks, fresh keys, images, measurements, analyses, or leftovers of killed runs. Repeat for several.
    Nothing if not given."""
    store: Path = Path("runs/store")
    """Folder of finished jobs."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def clean(argv: list[str]) -> None:
    """``expunge clean``."""
    options = parse(Clean, argv, "expunge clean")
    from expunge.jobs import disk

    freed = disk.clean(options.store, options.room) if options.room else 0
    left = disk.disk(options.store)
    lines = [f"{room:10} {r.jobs:>6} jobs {r.bytes / 1e6:>10.1f} MB" for room, r in left.items()]
    if options.room:
        lines.append(f"freed {freed / 1e6:.1f} MB")
    options.reporting.result(
        {"freed_bytes": freed, "rooms": {room: r._asdict() for room, r in left.items()}},
        "\n".join(lines) or f"{options.store}: nothing",
    )
