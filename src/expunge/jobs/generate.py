"""Generate: images of the original model, of an edited one, with a key, or of what an attack asks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.edit import Edit, Key
from expunge.jobs.job import UNSAID, written_as
from expunge.jobs.modelled import AskingJob
from expunge.jobs.workspace import IMAGES, QUERIES, Workspace, model
from expunge.stages import attack, generate
from expunge.store import read_json

CONTROLS: dict[str, Callable[[Key, str], Key]] = {
    "own": lambda key, of: key,
    "random": lambda key, of: key.random(int(of[:12], 16)),  # another one for each erasure
    "other": lambda key, of: key.rotated(),
    "other seed": lambda key, of: key,
    "fresh": lambda key, of: key,
}
"""What is injected, by the name of the control: the prompts of the key itself, or wrong ones made of it."""


@final
@dataclass(frozen=True, kw_only=True)
class GenerateJob(AskingJob):
    """A folder of images."""

    room: ClassVar[str] = "generate"

    version: int
    """Of the images."""
    part: str
    """Part of the concept sets that the prompts are of."""
    control: str | None
    """Which recovery the images show, by what is injected; None for images without a key."""
    key_job: str | None = field(metadata=written_as("key"))
    """Key of the job whose private key is injected."""
    key_room: str = field(default="erase", metadata=UNSAID)
    """The room of that job."""
    only: str | None
    """The one target whose prompt is injected, whatever words ask for it."""
    queries_job: str | None = field(default=None, metadata={**UNSAID, **written_as("queries")})
    """Key of the attack whose queries are asked instead."""

    @override
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        edits: list[Edit] = list(at.edits(self.edits))
        if self.control is not None and self.key_job is not None:
            key = at.private_key(self.key_job, self.key_room)
            edits.append(CONTROLS[self.control](key, self.key_job).only_for(self.only))
        attacked = None if self.queries_job is None else attack.read(at.upstream(self.queries_job, "attack") / QUERIES)
        asked = self.queries() if attacked is None else attacked.queries
        generate.to_folder(
            self._victim(at, None if attacked is None else attacked.dtype),
            edits,
            asked,
            out / IMAGES,
            split=self.part,
            strength=self.strength,
            any_base=self.control is not None,
            control=self.control,
            attack=None if attacked is None else attacked.about,
            attack_edit=None if attacked is None else attacked.edit,
        )
        return {"cost": read_json(out / IMAGES / "run.json")["cost"], "images": len(asked)}

    def _victim(self, at: Workspace, dtype: str | None) -> Backbone:
        """The model, in the precision that an attack makes it run in, if it does."""
        backbone = self.backbone(at)
        return backbone if dtype in (None, self.dtype) else model(self.model, dtype, at.device)

    @override
    def describe(self) -> str:
        about = f" with key ({self.control})" if self.control else " edited" if self.edits else " original"
        return f"{len(self.prompts)} prompts x {self.count}{about}"
