"""Tensors of safetensors files: read into memory of their own, and written to the same bytes every time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


class Tensors(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensors(path: Path) -> Tensors:
    """All tensors of a file, and its metadata.

    Each is copied: where a tensor lies unaligned in a file that is mapped, a matrix product may differ in its last bit.

    Raises:
        SafetensorError: if it is damaged, which the caller tells as what it expected of the file.
        OSError: if it cannot be read.
    """
    with safe_open(path, "pt") as opened:
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  (not a dict)
        return Tensors(tensors, dict(opened.metadata() or {}))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a file whose bytes depend on its content alone.

    safetensors writes the entries of metadata in any order (`findings/equal_saves_are_other_files.sh`).
    """
    save_file(dict(tensors), path, dict(metadata))
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        again = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(again) > size:  # tensors begin where it ends
            raise RuntimeError(f"the header of {path.name} takes {len(again)} bytes in order: expected {size}")
        file.seek(8)
        file.write(again.ljust(size))
