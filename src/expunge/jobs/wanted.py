"""Wanted: images that a method has the model make for it, once for all erasures that want the same."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.core.eraser import Redrawn, Wish
from expunge.jobs.job import UNSAID
from expunge.jobs.modelled import ModelJob
from expunge.jobs.workspace import IMAGES, Workspace
from expunge.stages import wanted
from expunge.store import read_images


@final
@dataclass(frozen=True, kw_only=True)
class WantedJob(ModelJob):
    """Images by role, a folder each. An erasure that does not find them makes its own, which are the same."""

    room: ClassVar[str] = "wanted"

    version: int
    wishes: Mapping[str, Sequence[str | Sequence[Any]]]
    """By role: a prompt for each image, or the fields of a `Redrawn`."""
    seed: int
    salt: str
    """Of the erasure, like its seed."""
    guidance: float
    steps: int
    on: Sequence[str] = field(default=(), metadata=UNSAID)
    """Keys of the erasures whose edits are in the model."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        backbone = self.backbone(at)
        before = backbone.cost
        made: dict[str, Any] = {}
        with backbone.attached(at.edits(self.on)):
            for role, folder in self.folders(out).items():
                wishes: list[Wish] = [wish if isinstance(wish, str) else Redrawn(*wish) for wish in self.wishes[role]]
                wanted.make(backbone, role, wishes, self.seed, self.salt, folder, made)
                made[role] = read_images(folder)
        return {"cost": asdict(backbone.cost - before), "images": sum(map(len, made.values()))}

    @override
    def describe(self) -> str:
        return f"images wanted of {', '.join(self.wishes)}"

    def folders(self, path: Path) -> dict[str, Path]:
        """The folder of each role's images in the job's own, whatever order the roles come in: its key does not order them."""
        return {role: path / IMAGES / str(number) for number, role in enumerate(sorted(self.wishes))}
