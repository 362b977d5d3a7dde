"""Pairs: unsafe images and their safe halves, made by the original model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.jobs.modelled import ModelJob
from expunge.jobs.workspace import IMAGES, Workspace
from expunge.settings.layers import filled
from expunge.stages import pairs


@final
@dataclass(frozen=True, kw_only=True)
class PairsJob(ModelJob):
    """Pairs of images that methods learn from."""

    room: ClassVar[str] = "pairs"

    version: int
    pairs: Mapping[str, Any]
    """The fields of a `Wish`."""
    judge: str
    """What the judge that chooses is told by."""
    guidance: float
    steps: int
    generates: int
    """Version of the images."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        backbone = self.backbone(at)
        before = backbone.cost
        wish: pairs.Wish = filled(pairs.Wish, "pairs", self.pairs)
        made = pairs.make(backbone, wish, out / IMAGES, guidance=self.guidance, steps=self.steps)
        return {"cost": asdict(backbone.cost - before), "pairs": made.count, "drawn": made.drawn}

    @override
    def describe(self) -> str:
        count = self.pairs["count"] * len(self.pairs["unsafe"])
        return f"{count} pairs of {self.pairs['target'] or 'what nobody looks for'}"
