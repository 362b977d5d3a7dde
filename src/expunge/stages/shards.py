"""Export of a folder whose files stay as they are, but for the edited tensors: made without loading the model."""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from expunge.backbones.pipeline import PipelineBackbone
from expunge.core.backbone import Backbone
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError
from expunge.stages import export
from expunge.stages.card import Told, card

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of numbers that an edited tensor can be written in, by safetensors' names."""


class Written(NamedTuple):
    """What an export by shards did."""

    files: int
    """Files in which tensors were exchanged; all others are links, or copies on another disk."""
    bytes: int
    """Bytes of those tensors."""


def to_folder(
    backbone: Backbone,
    edits: Sequence[Edit],
    out: Path,
    *,
    told: Told = export.NOTHING,
    strength: float | Sequence[float] = 1.0,
    any_base: bool = False,
    overwrite: bool = False,
) -> Written:
    """Write the edited model as a diffusers folder: copies of the files that an edit touches, and links to all others.

    Memory is that of the edited tensors. They are written in the precision that their file has. The folder's other files are
    the base's own, under a second name: do not write into either.

    Raises:
        ExpungeError: for a model that is not in a diffusers folder of safetensors, and for edits that are not of weights.
    """
    folder = backbone.folder if isinstance(backbone, PipelineBackbone) else None
    if folder is None or backbone.edits:
        raise ExpungeError(f"{backbone.name} does not lie in a diffusers folder: expected one, or another --layout")
    tensors = backbone.stack.composition(edits, strength, any_base)
    inside: dict[Path, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        file, own = folder.file_of(name)
        inside.setdefault(file, {})[own] = tensor
    files = folder.all_files()
    loading = f'`{folder.classes["_class_name"]}.from_pretrained("this folder"{_variant(files)})`'
    page = card(backbone, edits, loading, told, strength)
    with export.exported(out, overwrite, backbone, edits, page) as new:
        for file in files:
            copy = new / file.relative_to(folder.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file == folder.path / "model_index.json":
                copy.write_text(_index(folder.classes, folder.parts), encoding="utf-8")
                continue
            if file not in inside:
                _linked(file, copy)
                continue
            shutil.copyfile(file, copy)
            _exchange(copy, inside[file])
    return Written(len(inside), sum(t.numel() * t.element_size() for t in tensors.values()))


def _index(classes: Mapping[str, Any], parts: Collection[str]) -> str:
    """The list of a pipeline's components, less those that are not written: diffusers would look for these."""
    written = {
        name: [None, None] if isinstance(entry, list) and name not in parts else entry
        for name, entry in classes.items()
    }
    return json.dumps(written, indent=2) + "\n"


def _variant(files: Iterable[Path]) -> str:
    """What `from_pretrained` must be told of names such as ``model.fp16.safetensors``."""
    found = {match[1] for file in files if (match := re.search(r"\.(\w+)(?:-\d+-of-\d+)?\.safetensors$", file.name))}
    return f', variant="{found.pop()}"' if found else ""


def _linked(file: Path, copy: Path) -> None:
    """The same file under another name; a copy where the disk, or what the file is a link to, does not let it be."""
    with suppress(OSError):
        os.link(file.resolve(), copy)
        return
    shutil.copyfile(file, copy)


def _exchange(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in the place of those that a safetensors file has under the same names, which are as large."""
    with file.open("r+b") as opened:
        places = dict(_places(opened))
        for name, tensor in tensors.items():
            kind, shape, start, end = places[name]
            if kind not in _DTYPES or list(tensor.shape) != shape:
                raise ExpungeError(
                    f"'{file.name}' has '{name}' of {kind} {shape}: expected plain numbers, as the edit has"
                )
            raw = tensor.detach().cpu().to(_DTYPES[kind]).contiguous().view(torch.uint8).numpy().tobytes()
            if len(raw) != end - start:
                raise ExpungeError(
                    f"'{file.name}' is damaged: expected {len(raw)} bytes of '{name}', not {end - start}"
                )
            opened.seek(start)
            opened.write(raw)


def _places(opened: BinaryIO) -> Iterator[tuple[str, tuple[str, list[int], int, int]]]:
    """Type, shape, first byte and the one after the last of each tensor of a safetensors file."""
    size = int.from_bytes(opened.read(8), "little")
    for name, entry in json.loads(opened.read(size)).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            yield name, (entry["dtype"], entry["shape"], 8 + size + first, 8 + size + last)
