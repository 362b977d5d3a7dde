"""What a single file in the LDM layout is: its layout, the marks in it, and the configurations that it does not hold."""

import gzip
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from expunge.backbones.parts import read_json
from expunge.backbones.weight_files import check_kind
from expunge.core.errors import ExpungeError, unknown

LAYOUTS = Path(__file__).parent / "layouts"
PREDICTION = "prediction_type"
"""Where a file that expunge wrote says in its metadata what the model predicts."""
PREDICTS_V = "v_pred"
"""A tensor without content by which a file says that its model predicts v, as SDXL's v-models have it."""
ZERO_SNR = "ztsnr"
"""A tensor without content by which a file says that its noise schedule ends at pure noise."""
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
"""Classes of the components that the layout has places for."""
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v_prediction", "v": "v_prediction"}


class Header(NamedTuple):
    """What a safetensors file says before its tensors."""

    keys: frozenset[str]
    """Names of its tensors."""
    metadata: Mapping[str, str]


class Marks(NamedTuple):
    """What a file says of its model beside the weights."""

    prediction: str | None
    """What the model predicts; None if the file does not say."""
    zero_snr: bool
    """Whether its noise schedule ends at pure noise."""
    doubt: str | None = None
    """What the metadata says otherwise."""


class Configurations(NamedTuple):
    """What a single file is read with."""

    pipeline: str
    """Class of the pipeline."""
    parts: Mapping[str, Mapping[str, Any]]
    """Configurations by component; a tokenizer's is the word that it pads with."""
    options: Mapping[str, Any]
    """Options of the pipeline as a whole."""
    folder: Path | None = None
    """The diffusers folder that they are from, if they are from one."""


# the file -------------------------------------------------------------------------------------------------------------
def header(path: Path) -> Header:
    """What a file says before its tensors.

    Raises:
        ExpungeError: if it is no safetensors file, as what it is.
    """
    check_kind(path)
    try:
        with safe_open(path, "pt") as opened:
            return Header(frozenset(opened.keys()), opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ExpungeError(f"'{path}' is damaged or no safetensors file: {error}") from error


def layout_of(path: Path) -> str:
    """The layout of a single file: ``sd1``, ``sd2``, ``sd2-base``, ``sdxl``, or ``flux`` (its transformer).

    By the names in it; SD 2's two kinds by the marks in the file, if it has any, else it is taken for ``sd2``.

    Raises:
        ExpungeError: if it is no model in the LDM layout, or one of another family.
    """
    stored = header(path)
    keys = stored.keys
    _check_input(path, stored)
    if "conditioner.embedders.1.model.ln_final.weight" in keys:
        return "sdxl"
    if "cond_stage_model.model.ln_final.weight" in keys:
        return "sd2-base" if marks(path, stored).prediction == "epsilon" else "sd2"
    if any(
        k.startswith(("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.enc")) for k in keys
    ):
        return "sd1"
    if any(k.endswith("double_blocks.0.img_attn.qkv.weight") for k in keys):
        return "flux"
    what = "a safetensors file of another kind"
    if "conditioner.embedders.0.model.ln_final.weight" in keys:
        what = "Stable Diffusion XL's refiner"
    elif any("joint_blocks." in k for k in keys):
        what = "a transformer (Stable Diffusion 3)"
    elif any("lora" in k for k in keys):
        what = "a LoRA"
    elif any(k.startswith("model.diffusion_model.") for k in keys):
        what = "a UNet without its text encoder"
    raise ExpungeError(
        f"'{path}' holds {what}: expected a whole SD 1.x, 2.x or XL model in the LDM layout, or FLUX's transformer"
    )


def marks(path: Path, stored: Header) -> Marks:
    """What a file's keys and metadata (expunge's own, Stability's) say; a key, which other programs heed, goes first.

    Raises:
        ExpungeError: if the metadata says that the model predicts something else than noise or v.
    """
    name = next((n for n in (PREDICTION, "modelspec.prediction_type") if stored.metadata.get(n)), None)
    said = None if name is None else _PREDICTIONS.get(stored.metadata[name])
    if name is not None and said is None:
        raise ExpungeError(f"'{path}' says that it predicts '{stored.metadata[name]}' ({name}): expected epsilon or v")
    zero_snr = ZERO_SNR in stored.keys
    if PREDICTS_V in stored.keys and said == "epsilon":
        return Marks("v_prediction", zero_snr, f"its {name} says epsilon")
    return Marks("v_prediction" if PREDICTS_V in stored.keys else said, zero_snr)


def _check_input(path: Path, stored: Header) -> None:
    """Refuse a UNet that reads more than latents, and one on another noise schedule."""
    entrance = "model.diffusion_model.input_blocks.0.0.weight"
    if entrance in stored.keys:
        with safe_open(path, "pt") as opened:
            channels = opened.get_slice(entrance).get_shape()[1]
        if channels != 4:
            raise ExpungeError(
                f"'{path}' has a UNet of {channels} input channels: expected 4, of a text-to-image model"
            )
    foreign = next((k for k in ("edm_mean", "edm_vpred.sigma_max") if k in stored.keys), None)
    if foreign is not None:
        raise ExpungeError(f"'{path}' is on EDM's noise schedule (it has '{foreign}'): expected Stable Diffusion's")


# configurations -------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def _layouts() -> dict[str, Any]:
    return tomllib.loads((LAYOUTS / "layouts.toml").read_text())


def configurations(layout: str) -> Configurations:
    """The configurations of a layout that ships, or of a diffusers folder.

    Raises:
        ExpungeError: for an unknown layout, or a folder of components that the LDM layout has no place for.
    """
    if layout in _layouts():
        whole = _shipped(layout)
        return Configurations(whole.pop("pipeline"), whole, {})
    folder = Path(layout)
    if not (folder / "model_index.json").is_file():
        raise unknown("layout", layout, [*_layouts(), "a diffusers folder"])
    index = read_json(folder / "model_index.json")
    parts: dict[str, dict[str, Any]] = {}
    for part, named in index.items():
        files = [folder / part / f"{name}.json" for name in ("config", "scheduler_config")]
        file = next((f for f in files if f.is_file()), None)
        if file is not None and isinstance(named, list) and named[1]:
            parts[part] = {**read_json(file), "class": named[1]}
            if named[1] != CLASSES.get(part, named[1]):
                raise ExpungeError(f"'{folder}' has a {named[1]} as its {part}: expected an {CLASSES[part]}")
    return Configurations(str(index.get("_class_name")), parts, index, folder)


def _shipped(layout: str) -> dict[str, Any]:
    own = dict(_layouts()[layout])
    base = _shipped(own.pop("like")) if "like" in own else {}
    merged = dict(base)
    for part, new in own.items():
        other_sampler = part == "scheduler"  # whose settings would not fit
        merged[part] = {**base.get(part, {}), **new} if isinstance(new, dict) and not other_sampler else new
    return merged


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
