"""Difference: another model as an edit of the plan's, so that attacks on it have the plan's model as the original."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.core.cost import Cost
from expunge.jobs.modelled import ModelJob
from expunge.jobs.workspace import Workspace
from expunge.stages import importing
from expunge.store import EDIT, save_edit


@final
@dataclass(frozen=True, kw_only=True)
class DifferenceJob(ModelJob):
    """The edit that makes the plan's model another one. It says nothing of itself: the other is no method's edit of it."""

    room: ClassVar[str] = "difference"

    file: str
    """The other model, as `load` takes it; no part of the key."""
    file_sha256: str
    """Hash of its files."""
    version: int = importing.VERSION

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        other = at.backbone(self.file, self.dtype, self.file_sha256)
        edit = importing.difference(self.backbone(at), other)
        save_edit(edit, out / EDIT)
        return {"edit": edit.id, "cost": asdict(Cost())}

    @override
    def describe(self) -> str:
        return f"model '{self.file}' as an edit of '{self.model}'"
