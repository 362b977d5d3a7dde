"""Model families: the only folder that imports diffusers and transformers."""

from pathlib import Path
from typing import Any

from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.backbone import Backbone
from expunge.core.errors import ExpungeError


def of(model: Any) -> Backbone:
    """The backbone around ``model``: itself, or the one kept on a diffusers pipeline, made at the first call.

    Raises:
        ExpungeError: if it is neither.
    """
    if isinstance(model, Backbone):
        return model
    kept = getattr(model, "_expunge_backbone", None)
    if kept is None:
        if not all(hasattr(model, part) for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")):
            raise ExpungeError(
                f"a {type(model).__name__} cannot be edited: expected a StableDiffusionPipeline or an expunge backbone"
            )
        kept = StableDiffusion.from_pipeline(model)
        model._expunge_backbone = kept
    return kept


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
        folder = _download(model, revision)
    return StableDiffusion.from_folder(folder, name=model, device=device, dtype=dtype)


def _download(model: str, revision: str | None) -> Path:
    """Snapshot of a hub repository: configurations, tokenizers and safetensors only."""
    looks_like_a_path = model.startswith((".", "/", "~")) or model.count("/") != 1 or model.endswith("/")
    if looks_like_a_path:
        raise ExpungeError(
            f"no model folder '{model}': expected 'testbed', a diffusers folder or a hub id such as 'owner/name'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=["safety_checker/*"])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ExpungeError(
            f"model '{model}' is neither a folder here nor could it be fetched from the hub: {reason}"
        ) from error
