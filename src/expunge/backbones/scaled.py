"""Weights stored as 8-bit numbers with a scale beside them: number times scale is the weight.

ComfyUI's files name the scale of ``X.weight`` either ``X.scale_weight`` or ``X.weight_scale``, and may say of which format a
layer is, in ``X.comfy_quant`` or in the file's metadata. A layer may also have a scale for its *inputs*: it serves 8-bit
multiplication, whose inputs are 8-bit, too. The weights do not depend on it, and here inputs are never made 8-bit.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from expunge.core.errors import ExpungeError

_SCALES = ("scale_weight", "weight_scale")
_OF_INPUTS = ("scale_input", "input_scale")
_NOTE = "comfy_quant"
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
"""Formats in which a weight is number times scale."""
_HARMLESS = frozenset({"format", "full_precision_matrix_mult"})
"""What a note may say that does not change the weight; anything else might (a rotation, a size of blocks)."""
MARKER = "scaled_fp8"
"""A tensor without content by which older files say that they have scales."""
METADATA = "_quantization_metadata"
"""Where a file's metadata holds the notes of all layers."""


class ScaleError(ValueError):
    """A weight that cannot be had from what is stored; whoever opened the file names it."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, whose faults are told with its name.

    Raises:
        ExpungeError: if it is damaged, or has weights in a form that is not read.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ExpungeError(f"'{path}' is damaged: {error}") from error
    except ScaleError as error:
        raise ExpungeError(f"'{path}' has weights in a form that is not read: {error}") from error


def beside(key: str) -> set[str]:
    """Names of the tensors that may stand beside a weight, and are read with it or do not concern it."""
    stem, ending, _ = key.rpartition("weight")
    return {f"{stem}{end}" for end in (*_SCALES, *_OF_INPUTS, _NOTE)} if ending and stem.endswith(".") else set()


def has_scales(keys: Collection[str]) -> bool:
    """Whether a file of these tensors holds weights with scales."""
    return any(key.endswith(tuple(f".{end}" for end in _SCALES)) for key in keys)


def weight(opened: Any, key: str, keys: Collection[str]) -> Tensor:
    """The tensor ``key`` of an open safetensors file, times its scale if it has one.

    Raises:
        ScaleError: for a scale or a format that this cannot apply.
    """
    stored = opened.get_tensor(key)
    around = beside(key) & set(keys)
    scales = [name for name in around if name.endswith(_SCALES)]
    note = next((name for name in around if name.endswith(_NOTE)), None)
    if note is not None:
        _check_note(key, _parsed(note, bytes(opened.get_tensor(note).to(torch.uint8).flatten().tolist())))
    if len(scales) > 1 or (note is not None and not scales):
        raise ScaleError(f"'{key}' is 8-bit and has {len(scales)} scales beside it: expected one")
    if not scales:
        if not stored.is_floating_point():
            raise ScaleError(f"'{key}' is {_named(stored)} without a scale beside it: expected a weight that is read")
        return stored
    return _multiplied(key, stored, scales[0], opened.get_tensor(scales[0]))


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Refuse a file whose metadata says that a layer is of a format which this does not read.

    Raises:
        ScaleError: naming the layer and the format.
    """
    if METADATA not in metadata:
        return
    layers = _parsed(METADATA, metadata[METADATA].encode()).get("layers", {})
    if not isinstance(layers, dict):
        raise ScaleError(f"'{METADATA}' has layers {layers!r}: expected a JSON object")
    for layer, note in layers.items():
        _check_note(layer, note)


def _multiplied(key: str, stored: Tensor, name: str, scale: Tensor) -> Tensor:
    rows = len(stored) if stored.ndim else 1
    columns = (rows, *[1] * (stored.ndim - 1))
    if not stored.is_floating_point() and stored.dtype != torch.int8:
        raise ScaleError(f"'{key}' is {_named(stored)} with a scale: expected 8-bit floats or int8")
    one_each = scale.numel() == 1 or tuple(scale.shape) in ((rows,), (rows, 1), columns)
    if scale.dtype not in (torch.float32, torch.float16, torch.bfloat16) or not one_each:
        raise ScaleError(
            f"'{name}' is {_named(scale)} of {tuple(scale.shape)} for a weight of {tuple(stored.shape)} (scales of blocks?): "
            "expected one scale a tensor or one a row"
        )
    by_row = scale.float().reshape(columns) if scale.numel() > 1 else scale.float().reshape(())
    return stored.float() * by_row


def _check_note(layer: str, note: Any) -> None:
    given = note.get("format") if isinstance(note, dict) else note
    if given not in _FORMATS:
        raise ScaleError(f"'{layer}' is quantised as '{given}': expected one of {', '.join(_FORMATS)}")
    strange = next((k for k, v in note.items() if k not in _HARMLESS and v not in (None, False)), None)
    if strange is not None:
        raise ScaleError(f"'{layer}' is quantised with '{strange}' {note[strange]!r}, which is not read: expected none")


def _parsed(name: str, text: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise ScaleError(f"'{name}' is damaged: expected a JSON object ({error})") from error


def _named(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
