"""Names of LoRA files: diffusers' own, and kohya's (A1111, ComfyUI) for Stable Diffusion 1.x and 2.x."""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from expunge.core.adapter import LowRank
from expunge.core.errors import ExpungeError

Layout = Literal["diffusers", "kohya"]
WORDS = (
    *("unet", "transformer", "down_blocks", "mid_block", "up_blocks", "attentions", "resnets", "transformer_blocks"),
    *("attn", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "ff", "net", "proj"),
    *(
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
        "ff_context",
        "conv",
        "conv1",
        "conv2",
        "conv_in",
        "conv_out",
    ),
    *("conv_shortcut", "time_emb_proj", "time_embedding", "linear_1", "linear_2", "downsamplers", "upsamplers"),
)
"""Words of module names, which kohya's names join by the underscore that some of them hold."""
_PART = re.compile("(" + "|".join(sorted(WORDS, key=len, reverse=True)) + r"|\d+)(?:_|$)")
_ENDS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
}


def named(layers: Mapping[str, LowRank], layout: Layout) -> dict[str, Tensor]:
    """The tensors of a LoRA file, from low-rank changes by layer, whose scale is in their matrices."""
    found: dict[str, Tensor] = {}
    for name, part in layers.items():
        down, up = part.down.contiguous(), part.up.contiguous()
        if layout == "diffusers":
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = down, up
            continue
        flat = "lora_" + name.replace(".", "_")
        found[f"{flat}.lora_down.weight"], found[f"{flat}.lora_up.weight"] = down, up
        found[f"{flat}.alpha"] = torch.tensor(float(len(down)))  # so that alpha / r is 1
    return found


def factors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Low-rank changes (``LAYER.down``, ``LAYER.up``) from a LoRA file's tensors; alpha / r goes into each up.

    Raises:
        ExpungeError: if a name is of neither layout.
    """
    found: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        end = next((e for e in _ENDS if name.endswith(f".{e}")), None)
        if end is None:
            raise _unknown(name)
        layer = _layer(name.removesuffix(f".{end}"))
        if _ENDS[end] == "alpha":
            alphas[layer] = float(tensor)
        else:
            found[f"{layer}.{_ENDS[end]}"] = tensor
    for layer, alpha in alphas.items():
        if f"{layer}.down" in found and f"{layer}.up" in found:
            found[f"{layer}.up"] = found[f"{layer}.up"] * (alpha / len(found[f"{layer}.down"]))
    return found


def _layer(name: str) -> str:
    """A layer's dotted name."""
    if not name.startswith("lora_"):
        return name
    rest, parts = name.removeprefix("lora_"), []
    while rest:
        match = _PART.match(rest)
        if match is None:
            raise _unknown(name)
        parts.append(match[1])
        rest = rest[match.end() :]
    return ".".join(parts)


def _unknown(name: str) -> ExpungeError:
    return ExpungeError(
        f"a LoRA of unknown layout, with '{name}': expected diffusers' names, or kohya's of Stable Diffusion 1.x or 2.x"
    )
