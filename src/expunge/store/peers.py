"""What peers publish, as tensors by name: safetensors files, torch's files of tensors, and folders of one component."""

import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from expunge.core import lora
from expunge.core.adapter import Adapter, Gate
from expunge.core.errors import ExpungeError, reason
from expunge.core.lora import SETTINGS
from expunge.erasers.spm import Transport
from expunge.store.atomic import read_json
from expunge.store.tensors import Tensors, read_tensors

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
"""Endings of torch's own files, which are read without running what is in them."""


class Published(NamedTuple):
    """What somebody published."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    """A safetensors file's own; empty for others. peft's settings, which it keeps in a file beside, are put in."""
    component: str | None
    """Which component the folder holds, whole: ``unet``, ``text_encoder`` or ``transformer``; None for a file."""
    sha256: str
    """Of the bytes."""


def read_published(path: str | Path) -> Published:
    """Read a file of tensors, or a folder: one component of a model as diffusers or transformers keep it, or peft's of a LoRA.

    Raises:
        ExpungeError: if there is none, it is damaged, holds more than tensors, or is a whole model.
    """
    path = Path(path)
    files, component = ([path], None) if path.is_file() else _files(path)
    digest, tensors, metadata = hashlib.sha256(), {}, {}
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
        if file.suffix in PICKLES:
            tensors.update(_pickled(file))
        else:
            stored = read_safetensors(file)
            tensors.update(stored.tensors)
            metadata.update(stored.metadata)
    return Published(tensors, metadata, component, digest.hexdigest())


def read_safetensors(path: Path) -> Tensors:
    """All tensors of a safetensors file and its metadata, with the settings that peft keeps in a file beside it.

    Raises:
        ExpungeError: if it is damaged, or peft's and its settings are missing.
    """
    try:
        tensors, metadata = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise ExpungeError(f"'{path}' is damaged or no safetensors file: {reason(error)}") from error
    if SETTINGS not in metadata and any(name.startswith("base_model.model.") for name in tensors):
        beside = path.with_name("adapter_config.json")
        if not beside.is_file():
            raise ExpungeError(f"'{path}' is a LoRA of peft without its settings: expected '{beside.name}' beside it")
        metadata[SETTINGS] = json.dumps(read_json(beside))
    return Tensors(tensors, metadata)


def lora_adapter(stored: Tensors | Published, gate: Sequence[str] = ()) -> Adapter:
    """The adapter that a LoRA file holds, for any base that it fits; a membrane of SPM's authors keeps its gate.

    Args:
        stored: what the file holds.
        gate: words that open it, if the file does not say them.

    Raises:
        ExpungeError: if it holds more than low-rank changes, or has a gate of its own.
    """
    read = lora.read(stored.tensors, stored.metadata, gate)
    return Adapter(read.factors, gate=gate_of(read.gates))


def gate_of(gates: Sequence[Sequence[str]]) -> Gate | None:
    """The gate that a file's texts mean, for each component its own; None where there are none. All known ones are SPM's."""
    return Transport(gates) if gates else None


def _files(folder: Path) -> tuple[list[Path], str | None]:
    """The files of weights in a folder, and which component they are; None for a LoRA."""
    if not folder.is_dir():
        raise ExpungeError(f"no file or folder '{folder}': expected weights that somebody published")
    if (folder / "model_index.json").is_file():
        raise ExpungeError(f"'{folder}' is a whole model: expected one component of it, or --model '{folder}'")
    lora_file = folder / "adapter_model.safetensors"
    if lora_file.is_file():
        return [lora_file], None
    if not (folder / "config.json").is_file():
        raise ExpungeError(
            f"'{folder}' has neither config.json nor {lora_file.name}: expected a file, or a folder with a text encoder, a "
            "UNet or peft's LoRA"
        )
    config = read_json(folder / "config.json")
    kinds = {
        "UNet2DConditionModel": "unet",
        "SD3Transformer2DModel": "transformer",
        "FluxTransformer2DModel": "transformer",
        "clip_text_model": "text_encoder",
    }
    given = str(config.get("_class_name") or config.get("model_type"))
    if given not in kinds:
        raise ExpungeError(f"'{folder}' holds the component '{given}': expected one of {', '.join(kinds)}")
    for kind in (".safetensors", ".bin"):
        index = [read_json(file)["weight_map"] for file in sorted(folder.glob(f"*{kind}.index.json"))]
        files = [folder / name for name in sorted(set(index[0].values()))] if index else sorted(folder.glob(f"*{kind}"))
        if len(files) > 1 and not index:
            names = ", ".join(file.name for file in files)
            raise ExpungeError(f"'{folder}' has several files of weights ({names}): expected the file that is meant")
        if files:
            return files, kinds[given]
    raise ExpungeError(f"'{folder}' has no weights: expected a .safetensors or .bin file")


def _pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of one of torch's files, which may be nested by module, or stand in a training state as ``state_dict``."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ExpungeError(
            f"'{path}' is damaged, or holds more than tensors, which could run code: expected tensors alone; load it where you "
            f"trust it and write them with safetensors.torch.save_file ({reason(error)[:80]})"
        ) from error
    held = held.get("state_dict", held) if isinstance(held, Mapping) else held
    if not isinstance(held, Mapping):
        raise ExpungeError(f"'{path}' holds a {type(held).__name__}: expected tensors by name")
    return dict(_flat(path, held))


def _flat(path: Path, held: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in held.items():
        if isinstance(value, Mapping):
            yield from _flat(path, value, f"{front}{name}.")
        elif isinstance(value, Tensor):
            yield f"{front}{name}", value.detach()
        else:
            raise ExpungeError(
                f"'{path}' holds '{front}{name}' of type {type(value).__name__}: expected tensors by name"
            )
