"""Checkpoints: how far an erasure is, for a run that goes on with it."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from expunge.core.cost import Cost
from expunge.core.edit import not_finite
from expunge.core.errors import ExpungeError
from expunge.store.atomic import dumped, new_file, parsed
from expunge.store.tensors import read_tensors

SECONDS = 30.0
"""How often an erasure is written down; less often where writing would take more than a twentieth of the time."""


@final
@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where an erasure was after an update."""

    salt: str
    """The secret of a method with a key."""
    cost: Cost
    seconds: float
    state: Mapping[str, Tensor]
    """What the eraser needs to go on, bit for bit."""


@final
class Checkpoints:
    """The file in which an erasure writes down how far it is; its owner's alone, since it holds the secret of a key."""

    def __init__(self, file: Path, resume: bool = False, every: float = SECONDS) -> None:
        """Write to ``file`` every so many seconds; with ``resume`` go on from what is there."""
        self.file = file
        self._resume, self._every = resume, every
        self._last, self._waiting = time.monotonic(), None
        self._of = ""

    def begin(self, of: str) -> Checkpoint | None:
        """Where an earlier run of the erasure with the fingerprint ``of`` was, if it is to go on; else begin anew.

        Raises:
            ExpungeError: if what is there is damaged, or of another erasure.
        """
        self._of = of
        if not self._resume:
            self.end()
            return None
        return self._read() if self.file.exists() else None

    def add(self, checkpoint: "Checkpoint | None") -> None:
        """Write down the update before, which was not the last one; keep this one, if it is one, until the next."""
        if self._waiting is not None:
            begun = time.monotonic()
            self._write(self._waiting)
            self._last = time.monotonic()
            self._every = max(self._every, 20 * (self._last - begun))
        self._waiting = checkpoint

    def due(self) -> bool:
        """Whether it is time for one."""
        return time.monotonic() - self._last >= self._every

    def end(self) -> None:
        """Delete it, once the edit is written."""
        self.file.unlink(missing_ok=True)

    def _write(self, checkpoint: Checkpoint) -> None:
        name = not_finite(checkpoint.state)
        if name is not None:
            raise ExpungeError(f"the erasure's '{name}' is NaN or infinite: expected finite numbers, so a lower rate")
        tensors = {n: t.detach().cpu().contiguous() for n, t in checkpoint.state.items()}
        devices = {n: str(t.device) for n, t in checkpoint.state.items() if t.device.type != "cpu"}
        metadata: dict[str, Any] = {"of": self._of, "salt": checkpoint.salt, "cost": asdict(checkpoint.cost)}
        metadata |= {"seconds": checkpoint.seconds, "devices": devices}
        with new_file(self.file, overwrite=True, mode=0o600) as temporary:
            save_file(tensors, temporary, metadata={"checkpoint": dumped(self.file, metadata)})

    def _read(self) -> Checkpoint:
        try:
            state, metadata = read_tensors(self.file)
            stored = parsed(metadata["checkpoint"])
            state |= {name: state[name].to(device) for name, device in stored["devices"].items()}
            checkpoint = Checkpoint(
                salt=stored["salt"], cost=Cost(**stored["cost"]), seconds=stored["seconds"], state=state
            )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ExpungeError(
                f"'{self.file}' is damaged: expected a checkpoint to resume from, or no --resume ({error})"
            ) from error
        if stored["of"] != self._of:
            raise ExpungeError(
                f"'{self.file}' is of an erasure with another model, method, setting, target or seed: expected the same, or "
                "no --resume"
            )
        return checkpoint
