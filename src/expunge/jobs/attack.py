"""Attack: adversarial queries against edits, or against the original."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.core.concept import Concept
from expunge.core.eraser import files_of
from expunge.core.errors import ExpungeError
from expunge.jobs.job import UNSAID
from expunge.jobs.modelled import AskingJob
from expunge.jobs.workspace import QUERIES, Workspace
from expunge.stages import attack, measure


@final
@dataclass(frozen=True, kw_only=True)
class AttackJob(AskingJob):
    """One run of an attack. What it asks for is what it is to change."""

    room: ClassVar[str] = "attack"

    attack: str
    """Catalog name."""
    version: int
    settings: Mapping[str, Any]
    targets: Sequence[str]
    draws: int
    """Seed of the attack's own draws."""
    generates: int
    """Version of the images."""
    files: Mapping[str, str] | None = field(default=None, metadata=UNSAID)
    """The sha256 of each file that its settings name, by setting; None if they name none."""
    redefined: int = field(default=0, metadata=UNSAID)
    """1 in float16, where gradients were not scaled at first."""
    told_by: Mapping[str, str] | None = field(default=None, metadata=UNSAID)
    """What the judges and the CLIP that its settings name are told by, by setting, so that retrained ones are asked again."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        backbone, edits = self.backbone(at), at.edits(self.edits)
        targets = [Concept(name=name) for name in self.targets]
        built = attack.build(self.attack, self.settings)
        if files_of(built) != (self.files or {}):
            raise ExpungeError(
                f"a file that {self.attack}'s settings name changed since it was planned: expected the same"
            )
        if measure.told_by(self.settings) != (self.told_by or {}):
            raise ExpungeError(
                f"a judge or CLIP that {self.attack} asks changed since it was planned: expected the same"
            )
        before = backbone.cost
        queries = self.queries()
        gave = attack.run(backbone, self.attack, built, edits, targets, queries, self.draws, strength=self.strength)
        attack.to_folder(gave, out / QUERIES)
        return {"cost": asdict(backbone.cost - before), "queries": len(gave.queries)}

    @override
    def describe(self) -> str:
        return f"{self.attack} on {'edited' if self.edits else 'original'}: {', '.join(self.targets)}"
