"""Fisher: how much each parameter matters to images that should stay, once for all erasures that hold to it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.jobs.job import UNSAID
from expunge.jobs.kept import RESULT
from expunge.jobs.modelled import ModelJob
from expunge.jobs.wanted import WantedJob
from expunge.jobs.workspace import IMAGES, Workspace
from expunge.settings.layers import filled
from expunge.stages import fisher
from expunge.store import FISHER, read_json


@final
@dataclass(frozen=True, kw_only=True)
class FisherJob(ModelJob):
    """A Fisher file of the model as it is. A run that was killed is gone on with, image by image."""

    room: ClassVar[str] = "fisher"
    goes_on: ClassVar[bool] = True

    version: int
    fisher: Mapping[str, Any]
    """The fields of a `Wish`."""
    images: str
    """Key of the images' job."""
    redefined: int = field(default=0, metadata=UNSAID)
    """As of an `EraseJob`."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        wish: fisher.Wish = filled(fisher.Wish, "fisher", self.fisher)
        images = at.upstream(self.images, WantedJob.room)
        backbone, file, shown = self.backbone(at), out / FISHER, images / IMAGES / "0"
        # what a killed run has left is gone on with
        made = fisher.make(backbone, wish, file, images=shown, overwrite=True, go_on=True, anew=True)
        took = {"seconds": made.seconds, "seconds_of_images": read_json(images / RESULT)["seconds"]}
        return {"cost": asdict(made.cost), **took, "fisher": made.id, "images": made.images}

    @override
    def describe(self) -> str:
        images = min(self.fisher["count"], self.fisher["images"])
        return f"{self.fisher['group']} by {images} images x {self.fisher['timesteps']} timesteps"
