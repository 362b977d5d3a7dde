"""Export: a model with its edits fused, or adapters as a LoRA, in forms that need no expunge."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from expunge.backbones import bfl, ldm
from expunge.backbones.flux import Flux
from expunge.backbones.layout import PREDICTION, PREDICTS_V, ZERO_SNR
from expunge.backbones.parts import quiet
from expunge.backbones.pipeline import PipelineBackbone
from expunge.backbones.unet import UNetBackbone
from expunge.core.adapter import Adapter, LowRank
from expunge.core.backbone import Backbone
from expunge.core.bfl_lora import KOHYA, put_together
from expunge.core.edit import Edit, Weights, strengths
from expunge.core.errors import ExpungeError
from expunge.core.lora import Layout, written
from expunge.core.lora_names import kohya
from expunge.stages.card import Told, card, names
from expunge.store import FORMAT, MODEL, new_folder, write_json
from expunge.store.tensors import save_tensors

WHOLE = "model.safetensors"
"""A whole model in one file."""
LORA = "pytorch_lora_weights.safetensors"
"""The file that diffusers looks for in a folder of a LoRA."""
NOTHING = Told()
"""Nothing beside the edits is told of a card."""


def to_folder(
    backbone: Backbone,
    edits: Sequence[Edit],
    out: Path,
    *,
    told: Told = NOTHING,
    strength: float | Sequence[float] = 1.0,
    any_base: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the edited model as a diffusers folder with a model card; the backbone is left as it was.

    Raises:
        ExpungeError: if an edit has no weights to fuse, or the model is not one that diffusers can save.
    """
    if not isinstance(backbone, PipelineBackbone):
        raise ExpungeError(f"a {backbone.family} model cannot be exported: expected a family of diffusers")
    fused = _fused(backbone, edits, any_base)
    dtype = "" if backbone.dtype == torch.float32 else f", torch_dtype={backbone.dtype}"
    loading = f'`{backbone.pipeline}.from_pretrained("this folder"{dtype})`{_multiplied(backbone)}'
    page = card(backbone, edits, loading, told, strength)
    with (
        exported(out, overwrite, backbone, edits, page) as folder,
        backbone.attached(fused, strength, any_base),
        quiet(),
    ):
        import diffusers

        whole: Any = getattr(diffusers, backbone.pipeline)
        pipe = whole(**backbone.components(), **backbone.pipeline_options())
        pipe.save_pretrained(folder, safe_serialization=True)
    return out


@contextmanager
def exported(out: Path, overwrite: bool, backbone: Backbone, edits: Sequence[Edit], page: str) -> Iterator[Path]:
    """A new folder with a model card in it, and a file that tells expunge's own folders from others."""
    with new_folder(out, overwrite, marker=MODEL) as folder:
        yield folder
        write_json(folder / MODEL, {"format": FORMAT, "kind": backbone.kind, "edits": [e.id for e in edits]})
        (folder / "README.md").write_text(page, encoding="utf-8")


def to_file(
    backbone: Backbone,
    edits: Sequence[Edit],
    out: Path,
    *,
    told: Told = NOTHING,
    strength: float | Sequence[float] = 1.0,
    any_base: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the edited model as one file in the LDM layout, which A1111 and ComfyUI read, into a folder with its model card.

    Raises:
        ExpungeError: as `to_folder`, and for a model that the layout has no place for.
    """
    if isinstance(backbone, Flux):
        return _transformer_to_file(backbone, edits, out, told, strength, any_base, overwrite)
    if not isinstance(backbone, UNetBackbone):
        raise ExpungeError(
            f"the LDM layout of a {backbone.family} model: expected Stable Diffusion 1.x, 2.x or XL, or FLUX's transformer"
        )
    fused = _fused(backbone, edits, any_base)
    loading = (
        f'a checkpoint of A1111 and ComfyUI; `{backbone.pipeline}.from_single_file("{WHOLE}")`{_multiplied(backbone)}'
    )
    page = card(backbone, edits, loading, told, strength)
    with exported(out, overwrite, backbone, edits, page) as folder, backbone.attached(fused, strength, any_base):
        parts = backbone.components()
        coder = type(parts["vae"]).__name__
        if coder != "AutoencoderKL":
            raise ExpungeError(f"the LDM layout of {backbone.name}, which has an {coder}: expected an AutoencoderKL")
        learned = {p: dict(parts[p].state_dict()) for p in ("unet", "vae", *backbone.towers)}
        written = {key: t.cpu() for key, t in ldm.written(_ldm_layout(backbone, parts), learned).items()}
        sampler = parts["scheduler"].config
        metadata = {"format": "pt", PREDICTION: str(sampler.prediction_type)}
        marked = {
            PREDICTS_V: sampler.prediction_type == "v_prediction",
            ZERO_SNR: sampler.get("rescale_betas_zero_snr"),
        }
        written.update({mark: torch.zeros(0) for mark, holds in marked.items() if holds})  # which other programs heed
        save_tensors(written, folder / WHOLE, metadata)
    return out


def _transformer_to_file(
    backbone: Flux,
    edits: Sequence[Edit],
    out: Path,
    told: Told,
    strength: float | Sequence[float],
    any_base: bool,
    overwrite: bool,
) -> Path:
    """Write FLUX's edited transformer as one file in the names of Black Forest Labs, which ComfyUI reads."""
    fused = _fused(backbone, edits, any_base)
    beside = sorted(n for e in fused for n in e.tensors() if not n.startswith("transformer."))
    if beside:
        raise ExpungeError(
            f"an edit changes '{beside[0]}', and a single file of FLUX holds the transformer alone: expected --layout diffusers"
        )
    loading = (
        f'a diffusion model of ComfyUI; `FluxTransformer2DModel.from_single_file("{WHOLE}")`{_multiplied(backbone)}'
    )
    page = card(backbone, edits, loading, told, strength)
    with exported(out, overwrite, backbone, edits, page) as folder, backbone.attached(fused, strength, any_base):
        learned = dict(backbone.component("transformer").named_parameters())
        tensors = {key: t.detach().cpu() for key, t in bfl.written(learned).items()}
        save_tensors(tensors, folder / WHOLE, {"format": "pt"})
    return out


def _multiplied(backbone: PipelineBackbone) -> str:
    """What a card says of weights that were stored as 8-bit numbers with scales."""
    kind = str(backbone.dtype).removeprefix("torch.")
    return f". The base's 8-bit weights are times their scales here, in {kind}" if backbone.scaled else ""


def _ldm_layout(backbone: UNetBackbone, parts: Mapping[str, Any]) -> str:
    """The layout of a model: SD 2's text encoder is OpenCLIP's, whose activation is not CLIP's."""
    if backbone.family == "sdxl":
        return "sdxl"
    return "sd2" if parts["text_encoder"].config.hidden_act == "gelu" else "sd1"


def lora_to_folder(
    backbone: Backbone,
    edits: Sequence[Edit],
    out: Path,
    layout: Layout,
    *,
    told: Told = NOTHING,
    strength: float | Sequence[float] = 1.0,
    any_base: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write adapters without gates as one LoRA, with a model card; `load_lora_weights` of diffusers takes the folder.

    The kohya layout is what A1111 and ComfyUI read; that of Black Forest Labs what they publish beside FLUX.

    Raises:
        ExpungeError: if an edit is no adapter, has gates, or does not fit the model; for names that its family does not have,
            or a text encoder, which Black Forest Labs have no names for.
    """
    if layout == "kohya" and not isinstance(backbone, (UNetBackbone, Flux)):
        raise ExpungeError(
            f"the kohya layout of a {backbone.family} model: expected Stable Diffusion 1.x, 2.x or XL, or FLUX"
        )
    if layout == "bfl" and not isinstance(backbone, Flux):
        raise ExpungeError(f"the layout of Black Forest Labs of a {backbone.family} model: expected FLUX")
    each = strengths(strength, edits)
    layers = _joined(edits, each)
    other = next((name for name in layers if layout == "bfl" and not name.startswith("transformer.")), None)
    if other is not None:
        raise ExpungeError(
            f"'{other}' in the layout of Black Forest Labs, who name the transformer alone: expected another"
        )
    with backbone.attached(edits, any_base=any_base):  # which checks that they fit
        pass
    loading = (
        f'`pipe.load_lora_weights("this folder")` on a pipeline of `{names(backbone, told)[0]}`. Another LoRA that is loaded '
        "after it switches it off: `pipe.set_adapters([...])` with both names has both"
    )
    page = card(backbone, edits, loading, told, each, beside=True)
    with exported(out, overwrite, backbone, edits, page) as folder:
        if isinstance(backbone, Flux) and layout != "diffusers":
            layers = _in_modules(backbone, layers, layout)
        flat = _kohya_names(backbone, layers) if layout == "kohya" else {}
        save_tensors(written(layers, layout, flat), folder / LORA, {"format": "pt"})
    return out


def _in_modules(backbone: Flux, layers: Mapping[str, LowRank], layout: Layout) -> dict[str, LowRank]:
    """FLUX's changes beside the modules of its files, and beside CLIP's layers; by the layout's names."""
    modules = backbone.component("transformer")
    together = put_together(layers, lambda layer: modules.get_submodule(layer).weight.shape[0])
    if layout == "bfl":
        return together
    texts = {n: part for n, part in layers.items() if not n.startswith("transformer.")}
    flat = {f"{KOHYA}{module.replace('.', '_')}": part for module, part in together.items()}
    return {**flat, **{kohya(n, several_towers=True): part for n, part in texts.items()}}


def _kohya_names(backbone: Backbone, layers: Iterable[str]) -> dict[str, str]:
    """Kohya's names of layers: diffusers' with underscores, but the LDM layout's for the UNet of SDXL, as kohya trains it."""
    if backbone.family == "flux":
        return {}  # its layers have them
    if backbone.family != "sdxl":
        return {layer: kohya(layer, several_towers=False) for layer in layers}
    ours = [name.removeprefix("unet.") for name in backbone.group("full")]
    keys = {f"unet.{name}": home.key for name, home in ldm.places("unet", ours, "sdxl").items()}
    front = {layer: keys.get(f"{layer}.weight", "").removesuffix(".weight") for layer in layers}
    return {
        layer: key.replace("model.diffusion_model", "lora_unet").replace(".", "_")
        if key
        else kohya(layer, several_towers=True)
        for layer, key in front.items()
    }


def _joined(edits: Sequence[Edit], strength: Sequence[float]) -> dict[str, LowRank]:
    """Adapters side by side, their scales and strengths in the matrices that lead up."""
    if not edits:
        raise ExpungeError("no edit to export as a LoRA: expected at least one adapter")
    parts: dict[str, list[LowRank]] = {}
    for edit, one in zip(edits, strength, strict=True):
        if not isinstance(edit, Adapter):
            raise ExpungeError(f"edit {edit.id} is a {edit.kind} edit: expected adapters to export as a LoRA")
        if edit.gates:
            raise ExpungeError(
                f"edit {edit.id} has gates that read each prompt, which a LoRA has not: expected an adapter without"
            )
        for name, part in edit.layers.items():
            scale = (
                one * edit.scale
            )  # a half-precision matrix that is scaled is written in float32: small numbers would vanish
            up = part.up if scale == 1 else scale * part.up.float()
            parts.setdefault(name, []).append(LowRank(part.down, up))
    return {
        name: LowRank(torch.cat([p.down for p in several]), torch.cat([p.up for p in several], 1))
        for name, several in parts.items()
    }


def _fused(backbone: Backbone, edits: Sequence[Edit], any_base: bool) -> list[Edit]:
    """Edits that replace weights and do what ``edits`` do, which are this model's own unless ``any_base``."""
    with backbone.attached(edits, any_base=any_base):  # which checks that: an adapter that was fused is of this model
        pass
    return [_of_any_stack(as_weights(backbone, edit)) for edit in edits]


def _of_any_stack(edit: Edit) -> Edit:
    """Weights without the ids of the edits that they were made on: an adapter that was fused has another."""
    if not isinstance(edit, Weights) or not edit.requires:
        return edit
    return Weights(edit.tensors(), base_sha256=edit.base_sha256, provenance=edit.provenance)


def as_weights(backbone: Backbone, edit: Edit) -> Edit:
    """An edit that replaces weights: itself, or an adapter's change in the layers that it stands beside.

    Raises:
        ExpungeError: for an adapter with gates and for guidance, which no weights can hold.
    """
    if isinstance(edit, Adapter):
        return backbone.edit_of(edit.fused(backbone.tensors([f"{name}.weight" for name in edit.layers])))
    if edit.kind != "weights":
        raise ExpungeError(
            f"edit {edit.id} is a {edit.kind} edit, which has no weights to fuse by themselves: expected weights or an adapter"
        )
    return edit
