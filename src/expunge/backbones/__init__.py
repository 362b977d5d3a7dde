"""Model families: the only folder that imports diffusers and transformers."""

from pathlib import Path
from typing import Any

import torch

from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.backbone import Backbone
from expunge.core.errors import ExpungeError


def of(model: Any) -> Backbone:
    """The backbone around ``model``: itself, or the one of a diffusers pipeline, made at the first call and kept.

    Raises:
        ExpungeError: if it is neither.
    """
    if isinstance(model, Backbone):
        return model
    return StableDiffusion.from_pipeline(model)


def kind_of(model: str) -> str:
    """Under which a model's settings stand in ``presets.toml``, without opening it: ``testbed`` or ``sd``."""
    marked = Path(model) / "expunge.json"
    return "testbed" if model == "testbed" or (marked.is_file() and '"testbed"' in marked.read_text()) else "sd"


def fast_dtype() -> str:
    """The dtype in which this CPU samples fastest: bfloat16 where it computes in it, else float32."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if known.get("avx512_bf16") or known.get("amx_bf16") else "float32"


def load(
    model: str = "testbed", *, device: str = "cpu", dtype: str = "float32", revision: str | None = None
) -> Backbone:
    """Open ``testbed``, a local diffusers folder, or a hub id; weights are read when they are first needed.

    Raises:
        ExpungeError: if there is no such model, or it is of a family that is not supported.
    """
    if model == "testbed":
        from expunge.testbed import FOLDER

        return StableDiffusion.from_folder(FOLDER, name="testbed", device=device, dtype=dtype)
    folder = Path(model)
    if not folder.is_dir():
        folder = _download(model, revision, dtype)
    return StableDiffusion.from_folder(folder, name=model, device=device, dtype=dtype)


def _download(model: str, revision: str | None, dtype: str) -> Path:
    """Snapshot of a hub repository: configurations, tokenizers and safetensors only."""
    looks_like_a_path = model.startswith((".", "/", "~")) or model.count("/") != 1 or model.endswith("/")
    if looks_like_a_path:
        raise ExpungeError(
            f"no model folder '{model}': expected 'testbed', a diffusers folder or a hub id such as 'owner/name'"
        )
    from huggingface_hub import snapshot_download

    patterns = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
    unwanted = ["safety_checker/*", "*non_ema*", *([] if dtype == "float16" else ["*.fp16.safetensors"])]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=unwanted))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ExpungeError(
            f"model '{model}' is neither a folder here nor could it be fetched from the hub: {reason}"
        ) from error
