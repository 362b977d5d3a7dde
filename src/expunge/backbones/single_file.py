"""A model in one file of the LDM layout, with the configurations and the tokenizer that such a file does not hold."""

import gzip
import hashlib
import json
import tomllib
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from expunge.backbones import ldm
from expunge.backbones.parts import Files, quiet, read_json, sha256
from expunge.core.errors import ExpungeError, ExpungeWarning, unknown

LAYOUTS = Path(__file__).parent / "layouts"
PREDICTION = "prediction_type"
"""Where a file that expunge wrote says in its metadata what the model predicts."""
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
"""Classes of the components that the layout has places for."""


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


# which layout ---------------------------------------------------------------------------------------------------------
def layout_of(path: Path) -> str:
    """The layout of a single file: ``sd1``, ``sd2``, ``sd2-base`` or ``sdxl``.

    By the names in it; SD 2's two kinds by the file's metadata, where expunge wrote it, else it is taken for ``sd2``.

    Raises:
        ExpungeError: if it is no model in the LDM layout, or one of another family.
    """
    keys, metadata = _contents(path)
    _check_input(path, keys)
    if "conditioner.embedders.1.model.ln_final.weight" in keys:
        return "sdxl"
    if "cond_stage_model.model.ln_final.weight" in keys:
        return "sd2-base" if _predicts(keys, metadata) == "epsilon" else "sd2"
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


def _predicts(keys: Collection[str], metadata: Mapping[str, str]) -> str | None:
    """What the model predicts, where its file says so: expunge's metadata, Stability's, or the key of SDXL's v-models."""
    told = metadata.get(PREDICTION) or metadata.get("modelspec.prediction_type", "")
    known = {"epsilon": "epsilon", "v_prediction": "v_prediction", "v": "v_prediction"}
    return known.get(told) or ("v_prediction" if "v_pred" in keys else None)


def _check_input(path: Path, keys: Collection[str]) -> None:
    """Refuse a UNet that reads more than latents, and one on another noise schedule."""
    entrance = "model.diffusion_model.input_blocks.0.0.weight"
    if entrance in keys:
        with safe_open(path, "pt") as opened:
            channels = opened.get_slice(entrance).get_shape()[1]
        if channels != 4:
            raise ExpungeError(
                f"'{path}' has a UNet of {channels} input channels: expected 4, of a text-to-image model"
            )
    foreign = next((k for k in ("edm_mean", "edm_vpred.sigma_max") if k in keys), None)
    if foreign is not None:
        raise ExpungeError(f"'{path}' is on EDM's noise schedule (it has '{foreign}'): expected Stable Diffusion's")


def _contents(path: Path) -> tuple[frozenset[str], dict[str, str]]:
    """Names of a file's tensors, and its metadata."""
    try:
        with safe_open(path, "pt") as opened:
            return frozenset(opened.keys()), opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ExpungeError(f"'{path}' is damaged or no safetensors file: {error}") from error


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
    found: dict[str, dict[str, Any]] = {}
    for part, named in index.items():
        files = [folder / part / f"{name}.json" for name in ("config", "scheduler_config")]
        file = next((f for f in files if f.is_file()), None)
        if file is not None and isinstance(named, list) and named[1]:
            found[part] = {**read_json(file), "class": named[1]}
            if named[1] != CLASSES.get(part, named[1]):
                raise ExpungeError(f"'{folder}' has a {named[1]} as its {part}: expected an {CLASSES[part]}")
    return Configurations(str(index.get("_class_name")), found, index, folder)


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


# the model ------------------------------------------------------------------------------------------------------------
@final
class SingleFile(Files):
    """A model in the LDM layout."""

    def __init__(self, path: Path, layout: str | None, device: torch.device, dtype: torch.dtype) -> None:
        """Open ``path``.

        Args:
            path: the file.
            layout: one that ships, or a diffusers folder whose configurations and tokenizers are used; `layout_of` the file if
                not given.
            device: where components should be.
            dtype: in which precision.

        Raises:
            ExpungeError: if there is no such layout, or it is another family's.
        """
        super().__init__(device, dtype)
        self.path = path
        own = layout_of(path)
        self.given = configurations(own if layout is None else layout)
        self.names_of = own.partition("-")[0]
        self._names: dict[str, list[str]] = {}
        self._places: dict[str, dict[str, ldm.Place]] = {}
        expected = configurations(own).pipeline
        if self.given.pipeline != expected:
            raise ExpungeError(
                f"'{path}' holds a {expected}, and layout '{layout}' is a {self.given.pipeline}'s: expected one of its own"
            )
        self.prediction = self._prediction(own) if layout is None else None
        self.zero_snr = layout is None and "ztsnr" in self._keys

    def _prediction(self, layout: str) -> str | None:
        """What the model predicts, where the file itself says so; SD 2's kind is a guess otherwise, and said to be one."""
        keys, metadata = _contents(self.path)
        told = _predicts(keys, metadata)
        if told is None and layout == "sd2":
            warnings.warn(
                f"'{self.path}' is taken for a model that predicts v, as SD 2.0 and 2.1 do at 768x768: if it predicts noise, "
                "expected --model-layout sd2-base",
                ExpungeWarning,
                stacklevel=2,
            )
        return told

    @cached_property
    def _keys(self) -> frozenset[str]:
        return _contents(self.path)[0]

    @override
    def names(self, part: str) -> list[str]:
        if part not in self._names:
            model = self._built.get(part) or self._bare(part)
            self._names[part] = [n for n, _ in model.named_parameters()]
        return self._names[part]

    @override
    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        if part not in self._places:  # counted from all names, whichever are asked for
            self._places[part] = ldm.places(part, self.names(part), self.names_of)
        where = {n: self._places[part][n] for n in names}
        absent = [p.key for p in where.values() if p.key not in self._keys]
        if absent:
            raise ExpungeError(
                f"'{self.path}' has no '{absent[0]}': expected a whole model of this layout (or another layout)"
            )
        try:
            with safe_open(self.path, "pt") as opened:
                return {
                    n: ldm.taken(p, opened.get_tensor(p.key)).to(device=self.device, dtype=self.dtype).contiguous()
                    for n, p in where.items()
                }
        except (SafetensorError, OSError) as error:
            raise ExpungeError(f"'{self.path}' is damaged: {error}") from error

    @override
    def identity(self) -> str:
        folder = self.given.folder
        words = [] if folder is None else sorted(folder.glob("tokenizer*/*"))
        told = [self.given._replace(folder=None), self.prediction, [[f.name, sha256(f)] for f in words]]
        return hashlib.sha256(f"{json.dumps(told, sort_keys=True)} {sha256(self.path)}".encode()).hexdigest()

    @override
    def config(self, part: str) -> Mapping[str, Any]:
        if part not in self.given.parts:
            raise ExpungeError(f"'{self.path}' is read with a layout that has no {part}: expected one of its family's")
        return self.given.parts[part]

    @override
    def option(self, name: str, default: Any) -> Any:
        return self.given.options.get(name, default)

    @override
    def _build(self, part: str) -> Any:
        if part.startswith("tokenizer"):
            return self._tokenizer(part)
        model = self._bare(part)
        if part == "scheduler":
            return model
        read = self.read(part, self.names(part))
        wrong = next((n for n, p in model.named_parameters() if p.shape != read[n].shape), None)
        if wrong is not None:
            given, expected = tuple(read[wrong].shape), tuple(model.get_parameter(wrong).shape)
            raise ExpungeError(
                f"'{self.path}' has a {part} whose '{wrong}' is {given}: expected {expected} (or another layout)"
            )
        with quiet():
            model.load_state_dict(read, strict=False, assign=True)
            return model.to(self.device, self.dtype).eval().requires_grad_(False)

    def _tokenizer(self, part: str) -> Any:
        if self.given.folder is None:
            return tokenizer(str(self.given.parts[part]))
        from transformers import CLIPTokenizer

        with quiet():
            return CLIPTokenizer.from_pretrained(self.given.folder / part, local_files_only=True)

    def _bare(self, part: str) -> Any:
        """A component with the right configuration, whose parameters take no memory yet."""
        import diffusers
        import transformers
        from accelerate import init_empty_weights

        settings = {k: v for k, v in self.config(part).items() if k != "class"}
        with quiet(), init_empty_weights(include_buffers=False):
            if part.startswith("text_encoder"):
                kind: Any = transformers.CLIPTextModelWithProjection if part[-1] == "2" else transformers.CLIPTextModel
                return kind(transformers.CLIPTextConfig(**settings))
            cls = getattr(diffusers, CLASSES.get(part) or self.config(part)["class"])
            if part == "scheduler" and self.prediction is not None:
                settings[PREDICTION] = self.prediction
            if part == "scheduler" and self.zero_snr:
                settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            return cls.from_config(settings)
