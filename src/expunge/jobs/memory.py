"""Memory: the most bytes that tensors take in an erasure's first updates."""

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from typing_extensions import override

from expunge.core.peak_bytes import PeakBytes
from expunge.jobs.erase import EraseJob
from expunge.jobs.workspace import Workspace
from expunge.stages import erase


@final
@dataclass(frozen=True, kw_only=True)
class MemoryJob(EraseJob):
    """The most bytes that tensors take in an erasure's first updates, beside the model's own.

    Counting slows a small model by half, so an erasure is not counted while it is timed.
    """

    room: ClassVar[str] = "memory"

    updates: int
    """How many are counted: optimizers hold their state from the first on."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        backbone, eraser = self.backbone(at), self.built(at)
        with torch.no_grad():  # so that whatever is loaded at first use is there
            backbone.predict(backbone.noise(0), 1, backbone.encode([""]))
        task = erase.prepared(backbone, eraser, self.concepts(), self.retain, self.seed, self.salt, self.given(at))
        before = backbone.cost
        with PeakBytes() as memory:
            for step in islice(eraser.steps(backbone, task), self.updates):
                step.edit()
        return {"records": [], "values": [], "peak_bytes": memory.peak, "cost": asdict(backbone.cost - before)}
