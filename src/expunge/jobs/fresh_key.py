"""Fresh key: a key to an edited model, learned anew without the private one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.core.concept import Concept
from expunge.jobs.modelled import ModelJob
from expunge.jobs.workspace import Workspace
from expunge.stages import erase, fresh_key
from expunge.store import KEY, save_edit


@final
@dataclass(frozen=True, kw_only=True)
class FreshKeyJob(ModelJob):
    """A key for all targets, learned anew on the model that edits left."""

    room: ClassVar[str] = "relearn"  # what stored jobs are called

    eraser: str
    """A method with keys, by catalog name."""
    version: int
    """Of the method."""
    stage: int
    """Version of what learns it."""
    settings: Mapping[str, Any]
    targets: Sequence[str]
    seed: int
    edits: Sequence[str]
    """Keys of the erasures whose edits are in the model."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        backbone = self.backbone(at)
        eraser = erase.build(self.eraser, dict(self.settings), None)
        targets = [Concept(name=name) for name in self.targets]
        before = backbone.cost
        key = fresh_key.learn(backbone, self.eraser, eraser, targets, at.edits(self.edits), self.seed)
        save_edit(key, out / KEY)
        return {"edit": key.id, "cost": asdict(backbone.cost - before)}

    @override
    def describe(self) -> str:
        return f"a fresh key by {self.eraser} seed {self.seed}: {', '.join(self.targets)}"
