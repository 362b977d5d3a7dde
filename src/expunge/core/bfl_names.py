"""Names of FLUX's layers as Black Forest Labs publish them, whose matrices hold several of diffusers' one above the other."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE: Mapping[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_ENDS: Mapping[str, str] = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
SWAPPED = "norm_out.linear"
"""Whose rows are shift, then scale in files, and scale, then shift in diffusers."""
_KINDS = {"double_blocks": ("transformer_blocks", _DOUBLE), "single_blocks": ("single_transformer_blocks", _SINGLE)}
_FLAT = {name.replace(".", "_"): name for names in (_DOUBLE, _SINGLE, _ENDS) for name in names}


class Home(NamedTuple):
    """Where a layer of diffusers' stands in a file."""

    module: str
    part: int
    """Which of those it is that stand there one above the other."""
    parts: int
    """How many these are."""


def layers_of(module: str) -> tuple[str, ...] | None:
    """Diffusers' names of the layers in a file's module, from above; None for a module that FLUX has not."""
    if module in _ENDS:
        return (_ENDS[module],)
    match = re.fullmatch(r"(double_blocks|single_blocks)\.(\d+)\.(.+)", module)
    if match is None:
        return None
    blocks, names = _KINDS[match[1]]
    inner = names.get(match[3])
    return None if inner is None else tuple(f"{blocks}.{match[2]}.{layer}" for layer in inner)


def home_of(layer: str) -> Home | None:
    """Where a layer of diffusers' stands in a file; None for one that has no place there."""
    for module, name in _ENDS.items():
        if name == layer:
            return Home(module, 0, 1)
    for kind, (blocks, names) in _KINDS.items():
        match = re.fullmatch(rf"{blocks}\.(\d+)\.(.+)", layer)
        for module, inner in names.items() if match is not None else ():
            if match is not None and match[2] in inner:
                return Home(f"{kind}.{match[1]}.{module}", inner.index(match[2]), len(inner))
    return None


def dotted(flat: str) -> str | None:
    """A module's name from kohya's, which has underscores for dots; None for one that FLUX has not."""
    match = re.fullmatch(r"(double_blocks|single_blocks)_(\d+)_(.+)", flat)
    inner = _FLAT.get(flat if match is None else match[3])
    if inner is None:
        return None
    name = inner if match is None else f"{match[1]}.{match[2]}.{inner}"
    return name if layers_of(name) is not None else None
