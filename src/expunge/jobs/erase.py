"""Erase: an edit and, where the method makes one, its private key."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser
from expunge.jobs.job import UNSAID
from expunge.jobs.modelled import ModelJob
from expunge.jobs.workspace import IMAGES, Workspace
from expunge.stages import erase, pairs
from expunge.store import EDIT, KEY, save_edit


@dataclass(frozen=True, kw_only=True)
class EraseJob(ModelJob):
    """An erasure of targets."""

    room: ClassVar[str] = "erase"

    eraser: str
    """Catalog name."""
    version: int
    settings: Mapping[str, Any]
    """All of the eraser's."""
    targets: Sequence[str]
    retain: Sequence[str]
    seed: int
    salt: str
    on: Sequence[str] = field(default=(), metadata=UNSAID)
    """Keys of the erasures that it is made on top of."""
    images: str | None = field(default=None, metadata=UNSAID)
    """Key of the pairs that it learns from."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        backbone = self.backbone(at)
        with backbone.attached(at.edits(self.on)):
            edit = erase.run(
                backbone,
                self.eraser,
                self.built(),
                self.concepts(),
                list(self.retain),
                self.seed,
                self.salt,
                self.given(at),
            )
        save_edit(edit, out / EDIT)
        if edit.key is not None:
            save_edit(edit.key, out / KEY)
        return {"edit": edit.id, "cost": asdict(edit.provenance.cost) if edit.provenance else asdict(Cost())}

    @override
    def describe(self) -> str:
        kept = f", retaining {len(self.retain)}" if self.retain else ""
        kept += f", on {len(self.on)} edits" if self.on else ""
        return f"{self.eraser} seed {self.seed}{kept}: {', '.join(self.targets)}"

    def built(self) -> Eraser:
        """The eraser with its settings."""
        return erase.build(self.eraser, dict(self.settings), None)

    def concepts(self) -> list[Concept]:
        """The targets."""
        return [Concept(name=name) for name in self.targets]

    def given(self, at: Workspace) -> dict[str, Path]:
        """The folders of its pairs by role, if it learns from some."""
        if self.images is None:
            return {}
        return dict.fromkeys(pairs.ROLES, at.upstream(self.images, "pairs") / IMAGES)
