"""Given: an edit that was made elsewhere, taken into the store as it is."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.jobs.job import Job
from expunge.jobs.workspace import Workspace
from expunge.store import EDIT, load_edit, save_edit


@final
@dataclass(frozen=True, kw_only=True)
class GivenJob(Job):
    """A finished edit, so that its images are made and stored like those of an erasure."""

    room: ClassVar[str] = "given"

    edit: str
    """Its id."""
    file: str
    """Where it lies; no part of the key."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        edit = load_edit(Path(self.file))
        if edit.id != self.edit:
            raise ExpungeError(f"'{self.file}' holds edit {edit.id}: expected {self.edit}, which was planned")
        save_edit(edit, out / EDIT)
        return {"edit": edit.id, "cost": asdict(Cost())}

    @override
    def describe(self) -> str:
        return f"edit {self.edit}"
