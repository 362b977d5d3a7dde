"""Model families: the only folder that imports diffusers and transformers."""

import contextlib
from pathlib import Path
from typing import Any

import torch

from expunge.backbones import bfl
from expunge.backbones.flux import Flux
from expunge.backbones.held import unwrapped
from expunge.backbones.hub import download, file_of, is_hub_id
from expunge.backbones.layout import configurations, layout_of
from expunge.backbones.parts import DTYPES, read_json
from expunge.backbones.pipeline import PipelineBackbone
from expunge.backbones.sd3 import StableDiffusion3
from expunge.backbones.sdxl import StableDiffusionXL
from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.backbone import Backbone
from expunge.core.errors import ExpungeError, unknown

FAMILIES: dict[str, type[PipelineBackbone]] = {
    cls.pipeline: cls for cls in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)
}
"""Model families, by the class of pipeline that a folder's ``model_index.json`` names."""
KINDS = ("testbed", *(cls.family for cls in FAMILIES.values()), "flux-schnell")
"""What `kind_of` may say."""


def of(model: Any) -> Backbone:
    """The backbone around ``model``: itself, or the one of a diffusers pipeline, made at the first call and kept.

    Raises:
        ExpungeError: if it is neither.
    """
    if isinstance(model, Backbone):
        return model
    if hasattr(model, "transformer"):
        flux = "Flux" in type(unwrapped(model.transformer)).__name__
        return (Flux if flux else StableDiffusion3).from_pipeline(model)
    return (StableDiffusionXL if hasattr(model, "text_encoder_2") else StableDiffusion).from_pipeline(model)


def kind_of(model: str, revision: str | None = None) -> str:
    """Under which a model's settings stand in ``presets.toml``, without opening it: ``testbed``, or its family.

    Of a hub id only the index is fetched; a model that cannot be found is taken for Stable Diffusion 1.x.
    """
    if Path(model).is_file():
        family = _family_of(Path(model))
        return bfl.kind_of(Path(model)) if family is Flux else family.family
    marked = Path(model) / "expunge.json"
    if model == "testbed" or (marked.is_file() and '"testbed"' in marked.read_text()):
        return "testbed"

    def read(name: str) -> dict[str, Any]:
        file = Path(model) / name
        if is_hub_id(model):
            with contextlib.suppress(Exception):  # whoever opens the model says what is wrong
                file = file_of(model, revision, name)
        return read_json(file) if file.is_file() else {}

    family = FAMILIES.get(str(read("model_index.json").get("_class_name")))
    return "sd" if family is None else family.kind_by(lambda part: read(f"{part}/config.json"))


def _family_of(file: Path) -> type[PipelineBackbone]:
    """The family of a single file."""
    layout = layout_of(file)
    return Flux if layout == "flux" else FAMILIES[configurations(layout).pipeline]


def _open(folder: Path, name: str, device: str, dtype: str) -> Backbone:
    """The backbone of a diffusers folder, of the family that its index names."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ExpungeError(f"'{folder}' is not a diffusers folder: expected a model_index.json in it")
    given = str(read_json(index).get("_class_name"))
    if given not in FAMILIES:
        raise ExpungeError(f"'{folder}' holds a {given}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[given].from_folder(folder, name=name, device=device, dtype=dtype)


def fast_dtype() -> str:
    """The dtype in which this CPU samples fastest: bfloat16 where it computes in it, else float32."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if known.get("avx512_bf16") or known.get("amx_bf16") else "float32"


def load(
    model: str = "testbed",
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    layout: str | None = None,
) -> Backbone:
    """Open ``testbed``, a local diffusers folder, a hub id, or a single file; weights are read when they are first needed.

    Args:
        model: which.
        device: where it should run, by name or torch's own.
        dtype: precision of its weights while it runs, by name (``float16``) or torch's own (``torch.float16``).
        revision: branch, tag or commit of a hub model.
        layout: how a single file in the LDM layout is read: ``sd1``, ``sd2`` (v-prediction), ``sd2-base``, ``sdxl``, or a
            diffusers folder whose configurations and tokenizers are used. By the names in the file if not given. A file of
            FLUX's transformer needs a diffusers folder of FLUX, whose other components are used.

    Raises:
        ExpungeError: if there is no such model, or it is of a family that is not supported.
    """
    where, precision = str(device), str(dtype).removeprefix("torch.")
    if precision not in DTYPES:
        raise unknown("dtype", precision, DTYPES)
    if Path(model).is_file():
        return _family_of(Path(model)).from_file(Path(model), layout, name=model, device=where, dtype=precision)
    if layout is not None:
        raise ExpungeError(f"layout '{layout}' for '{model}': expected a single .safetensors file")
    if model == "testbed":
        from expunge.testbed import FOLDER

        return StableDiffusion.from_folder(FOLDER, name="testbed", device=where, dtype=precision)
    folder = Path(model)
    if not folder.is_dir():
        folder = download(model, revision, precision)
    return _open(folder, model, where, precision)
