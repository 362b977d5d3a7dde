"""Where jobs are run: a store of finished ones, the device that models are put on, and what jobs read there."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import torch

from expunge import backbones
from expunge.core.backbone import Backbone
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Key
from expunge.jobs.kept import RESULT
from expunge.store import EDIT, KEY, load_edit

IMAGES, QUERIES = "images", "queries"


@lru_cache(maxsize=2)
def model(name: str, dtype: str, device: str = "cpu") -> Backbone:
    """A model, kept from one job to the next."""
    return backbones.load(name, dtype=dtype, device=device)


def computed_with(device: str) -> dict[str, Any]:
    """What the bits of a result may depend on beside its job."""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
    }


@final
@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A store of finished jobs, shared by all plans, and a device."""

    store: Path
    device: str = "cpu"

    def folder(self, key: str, room: str) -> Path:
        """Where a job's files are, or will be."""
        return self.store / f"{room}-{key[:24]}"

    def upstream(self, key: str, room: str) -> Path:
        """The folder of a finished job.

        Raises:
            ExpungeError: if it is not there.
        """
        folder = self.folder(key, room)
        if not (folder / RESULT).is_file():
            raise ExpungeError(f"'{folder}' has no result: expected job {key[:8]} to be done first")
        return folder

    def backbone(self, name: str, dtype: str, sha256: str) -> Backbone:
        """The model that a job names.

        Raises:
            ExpungeError: if its files are no longer those that the job was planned with.
        """
        backbone = model(name, dtype, self.device)
        if backbone.identity() != sha256:
            raise ExpungeError(f"model '{name}' has changed since the job was planned: expected the same files")
        return backbone

    def edits(self, keys: Sequence[str]) -> list[Edit]:
        """The edits of erase jobs, edits that were given, or other models' differences, in order."""
        return [load_edit(self.upstream(key, self._room(key)) / EDIT) for key in keys]

    def _room(self, key: str) -> str:
        """Which room an edit is of."""
        rooms = ("given", "difference")
        return next((room for room in rooms if (self.folder(key, room) / RESULT).is_file()), "erase")

    def private_key(self, key: str, room: str) -> Key:
        """The private key that a job made.

        Raises:
            ExpungeError: if its file holds another edit.
        """
        held = load_edit(self.upstream(key, room) / KEY)
        if not isinstance(held, Key):
            raise ExpungeError(f"the key of job {key[:8]} is a {type(held).__name__}: expected a key")
        return held
