"""How far a run is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from expunge.jobs import Job


@final
@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands, whenever a job begins or ends."""

    done: int
    total: int
    running: Sequence[Job]
    """Jobs that are being done, what began first first."""
    seconds_left: float
    """What all that is not done should take; what was finished before the run is in none of these."""
