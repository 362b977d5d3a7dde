"""The LDM layout: one file for a whole model, as Stable Diffusion was first released and as A1111 and ComfyUI read it."""

import gzip
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from expunge.backbones.parts import Files, quiet, read_json, sha256
from expunge.core.errors import ExpungeError, unknown

LAYOUTS = Path(__file__).parent / "layouts"
TEXT = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
"""Where the text encoders' names begin; one that ends in ``model.`` is laid out as OpenCLIP's, the others as CLIP's."""


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
    if part == "unet":
        modules = _unet_modules(names)
        return {n: Place("model.diffusion_model." + _renamed(n, modules)) for n in names}
    if part == "vae":
        return {n: _vae_place(n, names) for n in names}
    prefix = TEXT[layout.split("-")[0]][part]
    place = _open_clip_place if prefix.endswith(".model.") else _clip_place
    return {n: place(n, prefix) for n in names}


def _unet_modules(names: Sequence[str]) -> dict[str, str]:
    """The file's names of the UNet's modules, counted as the blocks of one list."""
    found = dict(_ENDS)
    number = 1
    for block, layers in _blocks(names, r"down_blocks\.(\d+)\.resnets\.(\d+)\."):
        for layer in layers:
            found[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{number}.0"
            found[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if any(n.startswith(f"down_blocks.{block}.downsamplers.") for n in names):
            found[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for block, layers in _blocks(names, r"up_blocks\.(\d+)\.resnets\.(\d+)\."):
        for layer in layers:
            found[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{number}.0"
            found[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        after = 2 if any(n.startswith(f"up_blocks.{block}.attentions.") for n in names) else 1
        found[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{after}.conv"
    return found


def _blocks(names: Iterable[str], pattern: str) -> list[tuple[int, list[int]]]:
    """Numbers of the blocks that ``pattern`` finds in names, each with the numbers of its layers."""
    found: dict[int, set[int]] = {}
    for name in names:
        match = re.match(pattern, name)
        if match:
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    return [(block, sorted(found[block])) for block in sorted(found)]


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    owner = next((m for m in modules if name.startswith(f"{m}.")), None)
    if owner is None:
        raise ExpungeError(f"the LDM layout has no place for 'unet.{name}': expected a UNet of SD 1.x, 2.x or XL")
    rest = name.removeprefix(f"{owner}.")
    if ".resnets." in owner:
        inner, _, leaf = rest.rpartition(".")
        rest = f"{_RESNET[inner]}.{leaf}"
    return f"{modules[owner]}.{rest}"


def _vae_place(name: str, names: Sequence[str]) -> Place:
    prefix, square = "first_stage_model.", False
    ups = len(_blocks(names, r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\."))
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
    return Place(prefix + turned, square=square)


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
        raise ExpungeError(f"the LDM layout has no place for '{name}': expected a text encoder of CLIP's kind")
    layer, inner, leaf = f"{prefix}transformer.resblocks.{match[1]}", match[2], match[3]
    third = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}.get(inner)
    if third is not None:
        return Place(f"{layer}.attn.in_proj_{leaf}", third=third)
    return Place(f"{layer}.{_OPEN_CLIP[inner]}.{leaf}")


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
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for part, tensors in components.items():
        for name, place in places(part, list(tensors), layout).items():
            tensor = tensors[name].T if place.turned else tensors[name]
            if place.third is not None:
                thirds.setdefault(place.key, {})[place.third] = tensor
            else:
                found[place.key] = tensor[:, :, None, None] if place.square else tensor
    found.update({key: torch.cat([parts[i] for i in range(3)]) for key, parts in thirds.items()})
    if layout.startswith("sd2"):
        stem = f"{TEXT['sd2']['text_encoder']}transformer.resblocks."
        last = max(int(k.removeprefix(stem).split(".")[0]) for k in found if k.startswith(stem))
        rows = {k: v for k, v in found.items() if k.startswith(f"{stem}{last}.")}
        found.update({k.replace(f"{stem}{last}.", f"{stem}{last + 1}."): v.clone() for k, v in rows.items()})
    return {key: tensor.contiguous() for key, tensor in found.items()}


# reading --------------------------------------------------------------------------------------------------------------
def layout_of(path: Path) -> str:
    """The layout of a single file, by the names and shapes in it: ``sd1``, ``sd2`` or ``sdxl``.

    (``sd2-base`` has the names of ``sd2``; nothing in a file tells noise from v-prediction.)

    Raises:
        ExpungeError: if it is no model in the LDM layout, or one of another family.
    """
    keys = set(_keys(path))
    if "conditioner.embedders.1.model.ln_final.weight" in keys:
        return "sdxl"
    if "cond_stage_model.model.ln_final.weight" in keys:
        return "sd2"
    if any(k.startswith("cond_stage_model.transformer.text_model.") for k in keys):
        return "sd1"
    what = "a safetensors file of another kind"
    if "conditioner.embedders.0.model.ln_final.weight" in keys:
        what = "Stable Diffusion XL's refiner"
    elif any("joint_blocks." in k or "double_blocks." in k for k in keys):
        what = "a transformer (Stable Diffusion 3, FLUX)"
    elif any("lora" in k for k in keys):
        what = "a LoRA"
    elif any(k.startswith("model.diffusion_model.") for k in keys):
        what = "a UNet without its text encoder"
    raise ExpungeError(f"'{path}' holds {what}: expected a whole SD 1.x, 2.x or XL model in the LDM layout")


def _keys(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ExpungeError(f"'{path}' is damaged or no safetensors file: {error}") from error


@lru_cache(maxsize=1)
def _layouts() -> dict[str, Any]:
    return tomllib.loads((LAYOUTS / "layouts.toml").read_text())


def configurations(layout: str) -> dict[str, Any]:
    """The configurations of a layout that ships, or of a diffusers folder, by component; and the ``pipeline``'s class.

    Raises:
        ExpungeError: for an unknown layout.
    """
    if layout in _layouts():
        return _shipped(layout)
    index = Path(layout) / "model_index.json"
    if not index.is_file():
        raise unknown("layout", layout, [*_layouts(), "a diffusers folder"])
    classes = read_json(index)
    found: dict[str, Any] = {"pipeline": classes["_class_name"], "folder": Path(layout)}
    for part, named in classes.items():
        file = next(
            (f for n in ("config", "scheduler_config") if (f := Path(layout) / part / f"{n}.json").is_file()), None
        )
        if isinstance(named, list) and named[1] and file is not None:
            found[part] = {**read_json(file), "class": named[1]}
    return found


def _shipped(layout: str) -> dict[str, Any]:
    own = dict(_layouts()[layout])
    base = _shipped(own.pop("like")) if "like" in own else {}
    whole = lambda part: {} if part == "scheduler" else base.get(part, {})  # noqa: E731  (another sampler's settings)
    return base | {part: {**whole(part), **new} if isinstance(new, dict) else new for part, new in own.items()}


@lru_cache(maxsize=2)
def tokenizer(pad: str) -> Any:
    """CLIP's tokenizer, whose vocabulary follows from its merges: 256 bytes, those that end a word, the merges, two marks."""
    from transformers import CLIPTokenizer

    merges = gzip.decompress((LAYOUTS / "clip_merges.txt.gz").read_bytes()).decode().split("\n")
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    words = [*letters, *(f"{c}</w>" for c in letters), *(m.replace(" ", "") for m in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    pairs: list[Any] = [tuple(m.split(" ")) for m in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77, pad_token=pad)


@final
class SingleFile(Files):
    """A model in the LDM layout."""

    def __init__(self, path: Path, layout: str, device: torch.device, dtype: torch.dtype) -> None:
        """Open ``path``; ``layout`` is one that ships, or a diffusers folder whose configurations and tokenizers are used.

        Raises:
            ExpungeError: if there is no such layout, or it is another family's.
        """
        super().__init__(device, dtype)
        self.path, self.told = path, configurations(layout)
        self._places: dict[str, dict[str, Place]] = {}
        self.layout = layout_of(path)
        expected = _shipped(self.layout)["pipeline"]
        if self.told["pipeline"] != expected:
            raise ExpungeError(
                f"'{path}' holds a {expected}, and layout '{layout}' is a {self.told['pipeline']}'s: expected one of its own"
            )

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(_keys(self.path))

    @override
    def names(self, part: str) -> list[str]:
        with torch.device("meta"):
            model = self._built.get(part) or self._bare(part)
        return [n for n, _ in model.named_parameters()]

    @override
    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        if part not in self._places:  # counted from all names, whichever are asked for
            self._places[part] = places(part, self.names(part), self.layout)
        where = {n: self._places[part][n] for n in names}
        absent = [p.key for p in where.values() if p.key not in self._keys]
        if absent:
            raise ExpungeError(
                f"'{self.path}' has no '{absent[0]}': expected a whole model of this layout (or another layout)"
            )
        try:
            with safe_open(self.path, "pt") as opened:
                return {
                    n: taken(p, opened.get_tensor(p.key)).to(device=self.device, dtype=self.dtype).contiguous()
                    for n, p in where.items()
                }
        except (SafetensorError, OSError) as error:
            raise ExpungeError(f"'{self.path}' is damaged: {error}") from error

    @override
    def identity(self) -> str:
        told = json.dumps(self.told, sort_keys=True, default=str)
        return hashlib.sha256(f"{told} {sha256(self.path)}".encode()).hexdigest()

    @override
    def config(self, part: str) -> Mapping[str, Any]:
        return self.told[part]

    @override
    def option(self, name: str, default: Any) -> Any:
        return default

    @override
    def _build(self, part: str) -> Any:
        if part.startswith("tokenizer"):
            return self._tokenizer(part)
        if part == "scheduler":
            return self._bare(part)
        reads_text = part.startswith("text_encoder")
        with torch.device("cpu" if reads_text else "meta"):  # a text encoder has numbers that are in no file
            model = self._bare(part)
        read = self.read(part, [n for n, _ in model.named_parameters()])
        wrong = next((n for n, p in model.named_parameters() if p.shape != read[n].shape), None)
        if wrong is not None:
            given, expected = tuple(read[wrong].shape), tuple(model.get_parameter(wrong).shape)
            raise ExpungeError(
                f"'{self.path}' has a {part} whose '{wrong}' is {given}: expected {expected} (another layout?)"
            )
        with quiet():
            model.load_state_dict(read, strict=False, assign=True)
            return model.to(self.device, self.dtype).eval().requires_grad_(False)

    def _tokenizer(self, part: str) -> Any:
        if "folder" in self.told:
            from transformers import CLIPTokenizer

            with quiet():
                return CLIPTokenizer.from_pretrained(self.told["folder"] / part, local_files_only=True)
        return tokenizer(self.told[part])

    def _bare(self, part: str) -> Any:
        """A component with the right configuration, and no weights of its own."""
        if part not in self.told:
            raise ExpungeError(f"'{self.path}' is read with a layout that has no {part}: expected one of its family's")
        import diffusers
        import transformers

        settings = {k: v for k, v in self.told[part].items() if not k.startswith("_") and k != "class"}
        with quiet():
            if part.startswith("text_encoder"):
                kind: Any = transformers.CLIPTextModelWithProjection if part[-1] == "2" else transformers.CLIPTextModel
                return kind(transformers.CLIPTextConfig(**settings))
            name = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}.get(part) or self.told[part]["class"]
            return getattr(diffusers, name)(**settings)
