"""Measure: records of one folder of images, and the values behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.core.cost import Cost
from expunge.jobs.job import UNSAID, Job
from expunge.jobs.workspace import IMAGES, Workspace
from expunge.stages import measure


@final
@dataclass(frozen=True, kw_only=True)
class MeasureJob(Job):
    """A metric of a folder of images."""

    room: ClassVar[str] = "measure"

    metric: str
    """Catalog name."""
    version: int
    settings: Mapping[str, Any]
    judge: str
    """What its judge, or the weights it uses itself, are told by, so that retrained ones measure again."""
    images: str
    """Key of the images' job."""
    targets: Sequence[str]
    retain: Sequence[str]
    reference: str | None = field(default=None, metadata=UNSAID)
    """Key of the images that they are compared with."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        metric = measure.build(self.metric, self.settings)
        images = at.upstream(self.images, "generate") / IMAGES
        reference = None if self.reference is None else at.upstream(self.reference, "generate") / IMAGES
        measured = measure.measured(metric, self.metric, images, list(self.targets), list(self.retain), reference)
        return {
            "records": [m.record.as_json() for m in measured],
            "values": [[list(pair) for pair in m.values] for m in measured],
            "cost": asdict(Cost()),
        }

    @override
    def describe(self) -> str:
        return self.metric
