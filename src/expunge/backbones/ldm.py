"""The LDM layout: names and shapes in the one file that Stable Diffusion was first released as, and A1111 and ComfyUI read."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.core.errors import ExpungeError

TEXT = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
"""Where the text encoders' names begin, by layout; one that ends in ``model.`` is laid out as OpenCLIP's, others as CLIP's."""

_BESIDE = re.compile(
    r"model_ema\.|safety_checker\.|denoiser\.|(v_pred|ztsnr|scaled_fp8|global_step|logvar|lvlb_weights|scale_factor)$|"
    r"(betas|alphas_cumprod|sqrt_|log_one_minus_|posterior_)"
)
"""What files hold beside the components and a model is whole without: averaged copies, noise schedules, counters."""
_INSIDE = re.compile(
    r".*(\.position_ids|\.logit_scale|\.attn_mask|\.text_projection(\.weight)?|[._]scaled_fp8)$|"
    r"first_stage_model\.(loss|model_ema)\."
)
"""What files hold among a component's tensors that its class computes itself, or has no use for."""


class Place(NamedTuple):
    """Where a component's tensor stands in a file."""

    key: str
    third: int | None = None
    """Which third of the file's rows it is: queries, keys and values of OpenCLIP's attention are one matrix."""
    turned: bool = False
    """Whether the file has it transposed."""
    square: bool = False
    """Whether the file has it as a 1x1 convolution."""


# names ----------------------------------------------------------------------------------------------------------------
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def places(part: str, names: Sequence[str], layout: str) -> dict[str, Place]:
    """Where each of a component's tensors, all of which ``names`` names, stands in a file.

    Raises:
        ExpungeError: for a tensor that the layout has no place for.
    """
    try:
        if part == "unet":
            modules = _unet_modules(names)
            return {n: Place("model.diffusion_model." + _renamed(n, modules)) for n in names}
        if part == "vae":
            ups = len(_blocks(names, r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\."))
            return {n: _vae_place(n, ups) for n in names}
        prefix = TEXT[layout][part]
        placed = _open_clip_place if prefix.endswith(".model.") else _clip_place
        return {n: placed(n, prefix) for n in names}
    except KeyError as error:
        raise ExpungeError(
            f"the LDM layout '{layout}' has no place for {error} of the {part}: expected a model of SD 1.x, 2.x or XL"
        ) from error


def _unet_modules(names: Sequence[str]) -> dict[str, str]:
    """The file's names of the UNet's modules, counted as the blocks of one list."""
    modules = dict(_ENDS)
    number = 1
    for block, layers in _blocks(names, r"down_blocks\.(\d+)\.resnets\.(\d+)\."):
        for layer in layers:
            modules[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{number}.0"
            modules[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if any(n.startswith(f"down_blocks.{block}.downsamplers.") for n in names):
            modules[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for block, layers in _blocks(names, r"up_blocks\.(\d+)\.resnets\.(\d+)\."):
        for layer in layers:
            modules[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{number}.0"
            modules[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        after = 2 if any(n.startswith(f"up_blocks.{block}.attentions.") for n in names) else 1
        modules[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{after}.conv"
    return modules


def _blocks(names: Iterable[str], pattern: str) -> list[tuple[int, list[int]]]:
    """Numbers of the blocks that ``pattern`` finds in names, each with the numbers of its layers."""
    layers: dict[int, set[int]] = {}
    for name in names:
        match = re.match(pattern, name)
        if match:
            layers.setdefault(int(match[1]), set()).add(int(match[2]))
    return [(block, sorted(layers[block])) for block in sorted(layers)]


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    owner = next((m for m in modules if name.startswith(f"{m}.")), None)
    if owner is None:
        raise KeyError(name)
    rest = name.removeprefix(f"{owner}.")
    if ".resnets." in owner:
        inner, _, leaf = rest.rpartition(".")
        rest = f"{_RESNET[inner]}.{leaf}"
    return f"{modules[owner]}.{rest}"


def _vae_place(name: str, ups: int) -> Place:
    square = False
    turned = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{ups - 1 - int(m[1])}", name)
    turned = re.sub(r"down_blocks\.(\d+)", r"down.\1", turned)
    turned = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", turned)
    turned = re.sub(r"\.resnets\.(\d+)", r".block.\1", turned)
    turned = turned.replace(".downsamplers.0.", ".downsample.").replace(".upsamplers.0.", ".upsample.")
    turned = turned.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    inside = re.match(r"(.*)mid_block\.attentions\.0\.(.+)\.(weight|bias)$", turned)
    if inside:
        square = inside[2] != "group_norm" and inside[3] == "weight"
        turned = f"{inside[1]}mid.attn_1.{_VAE_ATTENTION[inside[2]]}.{inside[3]}"
    if "_block" in turned and ".mid.block_" not in turned:
        raise KeyError(name)
    return Place(f"first_stage_model.{turned}", square=square)


def _clip_place(name: str, prefix: str) -> Place:
    return Place(f"{prefix}text_model.{name.removeprefix('text_model.')}")


def _open_clip_place(name: str, prefix: str) -> Place:
    core = name.removeprefix("text_model.")
    whole = {
        "embeddings.token_embedding.weight": Place(f"{prefix}token_embedding.weight"),
        "embeddings.position_embedding.weight": Place(f"{prefix}positional_embedding"),
        "final_layer_norm.weight": Place(f"{prefix}ln_final.weight"),
        "final_layer_norm.bias": Place(f"{prefix}ln_final.bias"),
        "text_projection.weight": Place(f"{prefix}text_projection", turned=True),
    }
    if core in whole:
        return whole[core]
    match = re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", core)
    if match is None:
        raise KeyError(name)
    layer, inner, leaf = f"{prefix}transformer.resblocks.{match[1]}", match[2], match[3]
    third = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}.get(inner)
    if third is not None:
        return Place(f"{layer}.attn.in_proj_{leaf}", third=third)
    return Place(f"{layer}.{_OPEN_CLIP[inner]}.{leaf}")


def prefix(part: str, layout: str) -> str:
    """How the names of a component's tensors begin."""
    return {"unet": "model.diffusion_model.", "vae": "first_stage_model."}.get(part) or TEXT[layout].get(part, part)


def before_text_model(key: str) -> str:
    """A CLIP tensor's name in files that were written before transformers put ``text_model`` into it."""
    return key.replace(".transformer.text_model.", ".transformer.", 1)


def strange_in(part: str, layout: str, keys: Iterable[str], read: Collection[str]) -> list[str]:
    """Names among a component's tensors that are not ``read`` and that its class should have known."""
    start = prefix(part, layout)
    layers = [int(k.split(".resblocks.")[1].split(".")[0]) for k in read if ".resblocks." in k]
    unread = f"{start}transformer.resblocks.{max(layers, default=-1) + 1}."  # the layer that SD 2 has and does not use
    inside = [k for k in keys if k.startswith(start) and k not in read and not _INSIDE.match(k)]
    return sorted(k for k in inside if not (layout == "sd2" and k.startswith(unread)))


def strange_beside(layout: str, keys: Iterable[str]) -> list[str]:
    """Names of tensors that belong to no component and are not known to be of no use."""
    starts = tuple(prefix(part, layout) for part in ("unet", "vae", *TEXT[layout]))
    return sorted(k for k in keys if not k.startswith(starts) and not _BESIDE.match(k) and not _INSIDE.match(k))


def taken(place: Place, stored: Tensor) -> Tensor:
    """A component's tensor, from what stands at its place in a file."""
    part = stored if place.third is None else stored.chunk(3)[place.third]
    if place.square:
        part = part.flatten(1)
    return part.T if place.turned else part


def written(layout: str, components: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file in the LDM layout, from components' tensors by name.

    Stable Diffusion 2's text encoder has a layer more in such files, which nothing reads: it is a copy of the last one.
    """
    file: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for part, tensors in components.items():
        for name, place in places(part, list(tensors), layout).items():
            tensor = tensors[name].T if place.turned else tensors[name]
            if place.third is not None:
                thirds.setdefault(place.key, {})[place.third] = tensor
            else:
                file[place.key] = tensor[:, :, None, None] if place.square else tensor
    file.update({key: torch.cat([parts[i] for i in range(3)]) for key, parts in thirds.items()})
    if layout == "sd2" and "text_encoder" in components:
        stem = f"{TEXT['sd2']['text_encoder']}transformer.resblocks."
        last = max(int(k.removeprefix(stem).split(".")[0]) for k in file if k.startswith(stem))
        rows = {k: v for k, v in file.items() if k.startswith(f"{stem}{last}.")}
        file.update({k.replace(f"{stem}{last}.", f"{stem}{last + 1}."): v.clone() for k, v in rows.items()})
    return {key: tensor.contiguous() for key, tensor in file.items()}
