"""Fisher files: the diagonal Fisher information of a model's parameters, with what tells the model and the images."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from expunge.core.edit import fingerprint, not_finite
from expunge.core.errors import ExpungeError
from expunge.maths.fisher import Fisher
from expunge.store.atomic import FORMAT, dumped, new_file, parsed
from expunge.store.shapes import COST, check_shape
from expunge.store.tensors import read_tensors

FISHER = "fisher.safetensors"
ABOUT = {
    "base_sha256": dict,
    "model": str,
    "family": str,
    "group": str,
    "images": int,
    "timesteps": int,
    "seed": int,
    "cost": COST,
}
"""What a file says of itself, at least."""


def save_fisher(fisher: Fisher, path: Path, overwrite: bool = False) -> str:
    """Write a Fisher file; returns its id, sixteen hexadecimal digits that tell it by its content.

    Raises:
        ExpungeError: if a number is NaN or infinite, or the file exists (unless ``overwrite``) or cannot be written.
    """
    name = not_finite(fisher.tensors)
    if name is not None:
        raise ExpungeError(
            f"the Fisher information holds NaN or infinity in '{name}': expected finite numbers, so float32"
        )
    told = {**fisher.about, "format": FORMAT, "id": _id(fisher)}
    tensors = {n: t.detach().cpu().contiguous() for n, t in fisher.tensors.items()}
    with new_file(path, overwrite) as temporary:
        save_file(tensors, temporary, metadata={"fisher": dumped(path, told)})
    return told["id"]


def read_fisher(path: str | Path) -> Fisher:
    """Read a Fisher file.

    Raises:
        ExpungeError: if there is none, it is damaged, or another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise ExpungeError(f"no Fisher file '{path}': expected one that `expunge fisher` wrote")
    try:
        tensors, metadata = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise ExpungeError(f"'{path}' is damaged or no safetensors file: {error}") from error
    try:
        told: dict[str, Any] = dict(parsed(metadata["fisher"]))
        version, stored = told.pop("format"), told.pop("id")
    except (KeyError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{path}' is no Fisher file: expected one that `expunge fisher` wrote") from error
    if version != FORMAT:
        raise ExpungeError(f"'{path}' has format {version}: expected {FORMAT}")
    check_shape(f"what '{path}' says of itself", told, ABOUT)
    fisher = Fisher(tensors, told)
    if _id(fisher) != stored:
        raise ExpungeError(f"'{path}' is damaged: its content does not match its id {stored}")
    return fisher


def _id(fisher: Fisher) -> str:
    said = {name: value for name, value in fisher.about.items() if name not in ("cost", "seconds", "expunge")}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    digest.update(fingerprint(dict(fisher.tensors)).encode())
    return digest.hexdigest()[:16]
