"""Names of tensors in LoRA files: diffusers' newer and older ones, peft's, kohya's (A1111, ComfyUI), and the LDM layout's."""

import re
from typing import NamedTuple

from expunge.core.errors import ExpungeError

WORDS = (
    *("down_blocks", "mid_block", "up_blocks", "attentions", "resnets", "transformer_blocks", "attn", "attn1", "attn2"),
    *(
        "to_q",
        "to_k",
        "to_v",
        "to_out",
        "proj_in",
        "proj_out",
        "ff",
        "net",
        "proj",
        "conv",
        "conv1",
        "conv2",
        "conv_in",
    ),
    *(
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
        "ff_context",
        "conv_out",
        "conv_shortcut",
        "time_emb_proj",
    ),
    *("time_embedding", "add_embedding", "linear_1", "linear_2", "downsamplers", "upsamplers"),
    *(
        "input_blocks",
        "middle_block",
        "output_blocks",
        "in_layers",
        "emb_layers",
        "out_layers",
        "skip_connection",
        "op",
    ),
    *("time_embed", "label_emb", "out"),
    *("single_transformer_blocks", "proj_mlp", "norm", "norm1", "norm1_context", "linear", "x_embedder"),
    *("context_embedder", "time_text_embed", "timestep_embedder", "text_embedder", "guidance_embedder", "norm_out"),
    *("text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2"),
    "text_projection",
)
"""Words of module names, which kohya's names join by the underscore that some of them hold."""
_PART = re.compile("(" + "|".join(sorted(WORDS, key=len, reverse=True)) + r"|\d+)(?:_|$)")
KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_transformer_": "transformer",
}
"""How kohya's names begin, by component."""
_END = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<letter>[AB])|[._]lora[._](?P<word>down|up)|\.lora_linear_layer\.(?P<text>down|up))\.weight"
)
_UNET = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "time_embedding.", "add_embedding.")
_BLOCK_LAYERS = 3
"""Blocks of the LDM layout's one list that are one block of diffusers: two layers and what changes the size."""
_RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.2": "conv_out",
}
_MIDDLE = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")


class Place(NamedTuple):
    """What a tensor of a LoRA file is."""

    layer: str
    """Name of the layer, with its component in front."""
    part: str
    """``down``, ``up`` or ``alpha``."""


def place(name: str) -> Place | None:
    """The layer that a tensor belongs to, and which part of its change it is; None if it is no such part.

    Raises:
        ExpungeError: if it is, of a layer in no known naming.
    """
    alpha = re.fullmatch(r"(.+?)(?:[._]lora)?\.alpha", name)
    if alpha is not None:
        return Place(_layer(alpha[1], name), "alpha")
    match = _END.fullmatch(name)
    if match is None:
        return None
    part = {"A": "down", "B": "up"}.get(match["letter"]) or match["word"] or match["text"]
    return Place(_layer(match["layer"], name), part)


def kohya(layer: str, several_towers: bool) -> str:
    """Kohya's name of a layer whose names are diffusers'; text encoders are numbered where there are several."""
    part, _, rest = layer.partition(".")
    front = {"text_encoder": "te1" if several_towers else "te", "text_encoder_2": "te2"}.get(part, part)
    return f"lora_{front}_{levelled(rest) if part.startswith('text_') else rest}".replace(".", "_")


def levelled(name: str) -> str:
    """A name inside a CLIP text encoder with the level ``text_model``, which files have and newer transformers has not."""
    return f"text_model.{name}" if name.startswith("encoder.layers.") else name


def _layer(name: str, tensor: str) -> str:
    """A layer's name as diffusers has it, with its component in front and without the level ``text_model``."""
    start = next((k for k in KOHYA if name.startswith(k)), None)
    if start is not None:
        part, rest = KOHYA[start], _split(name.removeprefix(start), tensor)
    else:
        plain = name.removeprefix("base_model.model.")
        bare = plain.startswith(_UNET)  # older files of diffusers, and peft's, which name no component
        part, _, rest = f"unet.{plain}".partition(".") if bare else plain.partition(".")
        part = "unet" if part == "diffusion_model" else part
    if part not in KOHYA.values() and part != "text_encoder_3":
        raise unknown(tensor)
    rest = rest.replace(".processor.", ".")
    if part.startswith("text_"):
        rest = re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", rest)
        return f"{part}.{rest.removeprefix('text_model.')}"
    return f"{part}.{_of_list(re.sub(r'[.]to_out$', '.to_out.0', rest))}"


def _split(rest: str, tensor: str) -> str:
    """The dotted name that was joined by underscores."""
    parts: list[str] = []
    while rest:
        match = _PART.match(rest)
        if match is None:
            raise unknown(tensor)
        parts.append(match[1])
        rest = rest[match.end() :]
    return ".".join(parts)


def _of_list(name: str) -> str:
    """Diffusers' name of a UNet's layer, from one in the LDM layout of SD and SDXL, whose blocks are one list; others stay."""
    first = next((k for k in _ENDS if name == k), None)
    if first is not None:
        return _ENDS[first]
    match = re.fullmatch(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    number, rest = int(match[2]), match[3]
    if match[1] == "middle_block" and number < len(_MIDDLE):
        return f"{_MIDDLE[number]}.{_RESNET.get(rest, rest)}"
    side, number = ("down", number - 1) if match[1] == "input_blocks" else ("up", number)
    block, layer = divmod(number, _BLOCK_LAYERS)
    slot, _, inner = rest.partition(".")
    if inner in ("op", "conv"):
        return f"{side}_blocks.{block}.{side}samplers.0.conv"
    kind = "resnets" if slot == "0" else "attentions"
    return f"{side}_blocks.{block}.{kind}.{layer}.{_RESNET.get(inner, inner)}"


def unknown(name: str) -> ExpungeError:
    """The error for a name of no known layout."""
    return ExpungeError(f"a LoRA of unknown layout, with '{name}': expected diffusers' names, peft's or kohya's")
