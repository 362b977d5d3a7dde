"""Tensors of safetensors files, in memory of their own."""

from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
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
