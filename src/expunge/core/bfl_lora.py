"""LoRAs of FLUX in the names of Black Forest Labs (theirs, kohya's): taken apart by diffusers' layers, and put together."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from expunge.core.adapter import LowRank
from expunge.core.bfl_names import SWAPPED, dotted, home_of, layers_of
from expunge.core.errors import ExpungeError

KOHYA = "lora_unet_"
_DOTTED = re.compile(r"(?:base_model\.model\.)?(?:model\.)?(?:diffusion_model\.|transformer\.)?(?P<module>.+)")
_ENDINGS = {
    ".lora_A.weight": "lora_A.weight",
    ".lora_B.weight": "lora_B.weight",
    ".lora_down.weight": "lora_A.weight",
    ".lora_up.weight": "lora_B.weight",
    ".alpha": "alpha",
}
"""How a LoRA's tensors end, in files and as diffusers and peft have it."""
_HIDDEN = 4
"""Widths of the model that the hidden layer of a block is wide."""


def taken_apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA's tensors by diffusers' names, where they have those of Black Forest Labs; all others as they are.

    One that stands beside several layers is one beside each: they share the matrix down, and have their rows of the one up.
    """
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ending = next((e for e in _ENDINGS if name.endswith(e)), None)
        module = None if ending is None else _module(name.removesuffix(ending))
        layers = None if module is None else layers_of(module)
        if ending is None or layers is None:
            apart[name] = tensor
            continue
        what = _ENDINGS[ending]
        rows = _rows(name, tensor, len(layers)) if what == "lora_B.weight" else [tensor] * len(layers)
        for layer, part in zip(layers, rows, strict=True):
            if what == "lora_B.weight" and layer == SWAPPED:
                part = torch.cat([*part.chunk(2)][::-1])  # noqa: PLW2901
            apart[f"transformer.{layer}.{what}"] = part
    return apart


def _module(name: str) -> str | None:
    """The file's module that a LoRA's name is of; None for a name in another layout."""
    if name.startswith(KOHYA):
        return dotted(name.removeprefix(KOHYA))
    match = _DOTTED.fullmatch(name)
    module = None if match is None else match["module"]
    return module if module is not None and layers_of(module) is not None else None


def _rows(name: str, up: Tensor, parts: int) -> list[Tensor]:
    """A matrix up in the rows of each layer; of four layers the last is as wide as the hidden one of a block."""
    shares = parts - 1 + _HIDDEN if parts == 4 else parts
    if len(up) % shares:
        raise ExpungeError(
            f"a LoRA with '{name}' of {len(up)} rows: expected a multiple of {shares}, for its {parts} layers"
        )
    width = len(up) // shares
    return list(up.split([width] * (parts - 1) + [len(up) - width * (parts - 1)]))


def put_together(layers: Mapping[str, LowRank], rows_of: Callable[[str], int]) -> dict[str, LowRank]:
    """Changes beside layers of the transformer as those beside the file's modules, by their names; others are left out.

    Layers in one module have their own numbers there: its rank is the sum of theirs. ``rows_of`` says how many rows a layer's
    weight has, by diffusers' name without the component.

    Raises:
        ExpungeError: for a layer that has no place in a file.
    """
    inside: dict[str, dict[str, LowRank]] = {}
    for name, part in layers.items():
        if not name.startswith("transformer."):
            continue
        layer = name.removeprefix("transformer.")
        home = home_of(layer)
        if home is None:
            raise ExpungeError(f"'{name}' has no place in FLUX's files: expected a layer of its transformer")
        up = torch.cat([*part.up.chunk(2)][::-1]) if layer == SWAPPED else part.up
        inside.setdefault(home.module, {})[layer] = LowRank(part.down, up)
    together: dict[str, LowRank] = {}
    for module, parts in inside.items():
        every = layers_of(module) or ()
        down = torch.cat([parts[layer].down for layer in every if layer in parts])
        blocks: list[Tensor] = []
        start = 0
        for layer in every:
            rows, own = rows_of(layer), parts.get(layer)
            block = down.new_zeros((rows, len(down)), dtype=next(iter(parts.values())).up.dtype)
            if own is not None:
                block[:, start : start + len(own.down)] = own.up
                start += len(own.down)
            blocks.append(block)
        together[module] = LowRank(down, torch.cat(blocks))
    return together
