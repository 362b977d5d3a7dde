"""Erase: an edit and, where the method makes one, its private key."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.edit import Edit
from expunge.core.eraser import Eraser, Marked, Redrawn, files_of
from expunge.core.errors import ExpungeError
from expunge.jobs.job import UNSAID
from expunge.jobs.modelled import ModelJob
from expunge.jobs.wanted import WantedJob
from expunge.jobs.workspace import IMAGES, Workspace
from expunge.settings import presets
from expunge.stages import erase, pairs, stopping, wanted
from expunge.store import EDIT, FISHER, KEY, read_fisher, save_edit, with_provenance


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
    stop: Mapping[str, Any] | None = field(default=None, metadata=UNSAID)
    """Where a judge ends it before its updates do, as `stopping.as_json` has it."""
    judge: str = field(default="", metadata=UNSAID)
    """What tells the judge that the eraser asks from a retrained one; empty if it asks none."""
    files: Mapping[str, str] | None = field(default=None, metadata=UNSAID)
    """The sha256 of each file that its settings name, by setting; None if they name none."""
    fisher: str | None = field(default=None, metadata=UNSAID)
    """Key of the Fisher information that it holds to."""
    redefined: int = field(default=0, metadata=UNSAID)
    """How often the group of parameters that it trains came to mean others in this family of models."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        backbone, eraser = self.backbone(at), self.built(at)
        files = {name: told for name, told in files_of(eraser).items() if name != "fisher" or self.fisher is None}
        if files != (self.files or {}):
            raise ExpungeError(
                f"a file that {self.eraser}'s settings name changed since it was planned: expected the same"
            )
        with backbone.attached(at.edits(self.on)):
            edit = erase.run(
                backbone,
                self.eraser,
                eraser,
                self.concepts(),
                list(self.retain),
                self.seed,
                self.salt,
                self.given(at),
                stop=None if self.stop is None else stopping.of_json(self.stop),
            )
        shown = {} if edit.provenance is None else edit.provenance.images
        if self.images is None and any(images["given"] for images in shown.values()):
            raise ExpungeError(
                "images that were made for this erasure are of another one: expected its own (expunge clean)"
            )
        if self.fisher is not None:
            self._tell_fisher(edit, at)
        save_edit(edit, out / EDIT)
        if edit.key is not None:
            save_edit(edit.key, out / KEY)
        cost = asdict(edit.provenance.cost) if edit.provenance else asdict(Cost())
        return {"edit": edit.id, "cost": cost, **self._seconds_of_images(backbone, at), **self._stopped(edit)}

    def _tell_fisher(self, edit: Edit, at: Workspace) -> None:
        """Have the edit's provenance name the Fisher file as any store has it, and what its images were of."""
        if self.fisher is None or edit.provenance is None:
            return
        file = at.upstream(self.fisher, "fisher") / FISHER
        about = read_fisher(file).about
        shown = {"count": about["images"], "given": about["given"], "prompts": about["prompts"]}
        settings = {**edit.provenance.settings, "fisher": f"{file.parent.name}/{file.name}"}
        images = {**edit.provenance.images, "fisher": shown}
        with_provenance(edit, replace(edit.provenance, settings=settings, images=images))

    def _stopped(self, edit: Edit) -> dict[str, Any]:
        """After how many updates it was stopped, and whether enough was erased then; nothing without a stop."""
        if self.stop is None or edit.provenance is None:
            return {}
        return {"stopped": {name: edit.provenance.search[name] for name in ("updates", "reached", "looks")}}

    def _seconds_of_images(self, backbone: Backbone, at: Workspace) -> dict[str, float]:
        """What it took to make the images it wants, which its cost counts, where another job made them."""
        job = self.wanted(backbone)
        result = None if job is None else job.result(at)
        return {} if result is None else {"seconds_of_images": result["seconds"]}

    @override
    def describe(self) -> str:
        kept = f", retaining {len(self.retain)}" if self.retain else ""
        kept += f", on {len(self.on)} edits" if self.on else ""
        kept += f", to ESR-1 {self.stop['erased']:g}" if self.stop is not None else ""
        return f"{self.eraser} seed {self.seed}{kept}: {', '.join(self.targets)}"

    def built(self, at: Workspace | None = None) -> Eraser:
        """The eraser with its settings; with the Fisher file of another job, which has no place without a workspace."""
        return erase.build(self.eraser, self.told(at), None)

    def told(self, at: Workspace | None = None) -> dict[str, Any]:
        """Its settings, with where the Fisher file of another job lies."""
        if self.fisher is None:
            return dict(self.settings)
        folder = Path() if at is None else at.upstream(self.fisher, "fisher")
        return {**self.settings, "fisher": str(folder / FISHER)}

    def concepts(self) -> list[Concept]:
        """The targets."""
        return [Concept(name=name) for name in self.targets]

    def given(self, at: Workspace) -> dict[str, Path]:
        """The folders of its images by role: the pairs that it learns from, or images it wants that are made already."""
        if self.images is not None:
            return dict.fromkeys(pairs.ROLES, at.upstream(self.images, "pairs") / IMAGES)
        job = self.wanted(self.backbone(at))
        return {} if job is None or job.result(at) is None else job.folders(job.folder(at))

    def wanted(self, backbone: Backbone) -> WantedJob | None:
        """The job that makes the images it wants; None if it wants none, is given some, or wants what no model makes."""
        needs = {} if self.images is not None else self.built().wants(self.concepts(), self.retain)
        needs = {role: wishes for role, wishes in needs.items() if wishes}
        wishes = [wish for role in needs.values() for wish in role]
        if not wishes or any(isinstance(wish, Marked) for wish in wishes):
            return None
        guidance, steps = presets.generation(backbone)
        sources = [next((wish.of for wish in role if isinstance(wish, Redrawn)), None) for role in needs.values()]
        redrawn = sum(len(needs[of]) for of in sources if of is not None)
        plain = sum(isinstance(wish, str) for wish in wishes)
        return WantedJob(
            cost=Cost(forward=presets.image_evaluations(backbone) * (plain + redrawn)),
            memory=self.memory,
            version=wanted.VERSION,
            wishes={role: [w if isinstance(w, str) else list(w) for w in each] for role, each in needs.items()},
            seed=self.seed,
            salt=self.salt,
            guidance=guidance,
            steps=steps,
            on=self.on,
            model=self.model,
            model_sha256=self.model_sha256,
            dtype=self.dtype,
        )
