"""A diffusers folder, whose components are built when they are first used."""

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from expunge.backbones.parts import Files, quiet, read_json, weighty
from expunge.backbones.weight_files import Weights, check_kind, chosen
from expunge.core.errors import ExpungeError, ExpungeWarning, reason
from expunge.testbed.parts import Parts

_UNREAD = ("logit_scale", "vision_model.", "visual_projection.", "text_projection.weight")
"""Tensors of a whole CLIP, which a text encoder saved with them does not have."""
_WITH_LEVEL = {f"^{name}": f"text_model.{name}" for name in ("embeddings", "encoder", "final_layer_norm")}
"""Names of CLIP's tensors as transformers before 5.6 knows them, from those that later ones write; these read both."""


@final
class Folder(Files):
    """A diffusers folder whose components are built when they are first used."""

    def __init__(
        self,
        path: Path,
        pipeline: str,
        parts: Sequence[str],
        optional: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        packing: int = 1,
    ) -> None:
        """Open ``path``, which should hold a ``pipeline`` of these parts, but perhaps for the ``optional`` ones.

        Its denoiser reads ``packing`` latents as the channels of one place.

        Raises:
            ExpungeError: if it does not.
        """
        index = path / "model_index.json"
        if not index.is_file():
            raise ExpungeError(f"'{path}' is not a diffusers folder: expected a model_index.json in it")
        self.classes = read_json(index)
        given = self.classes.get("_class_name")
        if given != pipeline:
            raise ExpungeError(f"'{path}' holds a {given}: expected a {pipeline}")
        self.missing = {part for part in optional if self.classes.get(part) in (None, [None, None])}
        parts = [part for part in parts if part not in self.missing]
        for part in parts:
            if not (path / part).is_dir():
                raise ExpungeError(f"'{path}' has no '{part}' folder: expected a complete diffusers folder")
        for part in parts:
            named = self.classes.get(part)
            if not (isinstance(named, list) and len(named) == 2 and all(isinstance(n, str) for n in named)):
                raise ExpungeError(f"'{index}' names {named} as its {part}: expected a library and a class")
        super().__init__(device, dtype)
        self.path, self.parts = path, tuple(parts)
        self._own = Parts(path)
        self._weights: dict[str, Weights] = {}
        self._shapes: dict[str, dict[str, torch.Size]] = {}
        self._check_input(packing)

    def _check_input(self, packing: int) -> None:
        """Refuse a denoiser that reads more than latents: one of inpainting, depth or instructions."""
        denoiser = "unet" if "unet" in self.parts else "transformer"
        reads = self.config(denoiser).get("in_channels")
        latent = self.config("vae").get("latent_channels")
        if latent is not None and reads != packing * latent:
            raise ExpungeError(
                f"'{self.path}' has a {denoiser} of {reads} input channels: expected {packing * latent}, of a text-to-image "
                "model"
            )

    def weights(self, part: str) -> Weights:
        """The file of a component's weights, which is named as what it is if it holds none."""
        if part in self._weights:
            return self._weights[part]
        names = [f.name for f in (self.path / part).iterdir()]
        entry = chosen(part, names, str(self.dtype).removeprefix("torch."))
        if entry is None:
            expected = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
            others = ", ".join(sorted(n for n in names if not n.endswith(".json"))) or "no other file"
            raise ExpungeError(
                f"'{self.path / part}' has no safetensors weights, and no .bin: expected {expected}.safetensors (there is "
                f"{others})"
            )
        for doubt in entry.doubts(part):
            warnings.warn(f"'{self.path / part}' {doubt}", ExpungeWarning, stacklevel=2)
        self._weights[part] = entry
        for file in self._all_files(part):
            if not file.is_file():
                hint = (
                    f" (a save in one file leaves it beside '{entry.beside}': delete it then)" if entry.beside else ""
                )
                raise ExpungeError(
                    f"'{self.path / part / entry.name}' is damaged: it names '{file.name}', which is not there{hint}"
                )
            check_kind(file, pickle=not entry.safe)
        return entry

    def _all_files(self, part: str) -> list[Path]:
        """The files that hold a component's weights."""
        file = self.path / part / self.weights(part).name
        if file.suffix != ".json":
            return [file]
        return sorted({file.parent / name for name in self._shards(file).values()})

    def _shards(self, index: Path) -> dict[str, str]:
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ExpungeError(f"'{index}' has no weight_map: expected a file's name by tensor")
        return shards

    def _read_files(self, part: str) -> list[Path]:
        """The files that a component is read from, and indices of weights that are not."""
        texts = [f for f in (self.path / part).iterdir() if f.suffix in (".json", ".txt", ".model")]
        return [*texts, *(self._all_files(part) if weighty(part) else ())]

    @override
    def identity(self, parts: Sequence[str] | None = None) -> str:
        """Sha256 of what the model is made from, or ``parts`` of it."""
        files = {file for part in parts or self.parts for file in self._read_files(part)}
        digest = hashlib.sha256()
        for file in sorted({self.path / "model_index.json", *files}):
            digest.update(f"{file.relative_to(self.path)} {self._own.sha256(file)}\n".encode())
        return digest.hexdigest()

    @override
    def size(self, parts: Sequence[str] | None = None) -> int:
        """Bytes of the files of weights, or of ``parts`` of them."""
        weights = {f for part in parts or self.parts if weighty(part) for f in self._all_files(part)}
        return sum(f.stat().st_size for f in weights)

    @override
    def config(self, part: str) -> Mapping[str, Any]:
        return read_json(self.path / part / "config.json")

    @override
    def option(self, name: str, default: Any) -> Any:
        return self.classes.get(name, default)

    # tensors ----------------------------------------------------------------------------------------------------------
    def _files(self, part: str) -> dict[str, Path]:
        """File of each tensor of a component, in the files' order."""
        self._own.check(self._read_files(part))
        file = self.path / part / self.weights(part).name
        if file.suffix == ".json":
            return {n: file.parent / f for n, f in self._shards(file).items()}
        try:
            with safe_open(file, "pt") as opened:
                return dict.fromkeys(opened.keys(), file)
        except (SafetensorError, OSError) as error:
            raise ExpungeError(f"'{file}' is damaged: {error}") from error

    @override
    def names(self, part: str) -> list[str]:
        if not self._read_by_name(part):
            return [n for n, _ in self.get(part).named_parameters()]
        expected = self._expected(part)
        return [n for n in self._files(part) if n in expected]

    @override
    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        if not self._read_by_name(part):
            parameters = dict(self.get(part).named_parameters())
            return {n: parameters[n].detach() for n in names}
        files, expected = self._files(part), self._expected(part)
        tensors: dict[str, Tensor] = {}
        try:
            for file in {files[n] for n in names}:
                with safe_open(file, "pt") as opened:
                    for name in names:
                        if files[name] == file:
                            tensors[name] = opened.get_tensor(name).to(device=self.device, dtype=self.dtype, copy=True)
        except (SafetensorError, OSError) as error:
            raise ExpungeError(f"'{self.path / part}' is damaged: {error}") from error
        for name, tensor in tensors.items():
            if tensor.shape != expected[name]:
                self._refuse_shape(part, name, tensor.shape, expected[name])
        return tensors

    def _read_by_name(self, part: str) -> bool:
        """Whether tensors can be had from the files: not of pickles, and not of text encoders, whose names vary."""
        return part not in self._built and self.classes[part][0] == "diffusers" and self.weights(part).safe

    def _expected(self, part: str) -> dict[str, torch.Size]:
        """Shapes of the parameters that a component's configuration asks for, all of which its files hold.

        Raises:
            ExpungeError: if the files have another set of tensors.
        """
        if part not in self._shapes:
            from accelerate import init_empty_weights

            cls = self._class(part)
            with quiet(), init_empty_weights(include_buffers=False):
                bare = cls.from_config(cls.load_config(self.path / part, local_files_only=True))
            held, known = set(self._files(part)), set(bare.state_dict())
            self._check_names(part, sorted(known - held), sorted(held - known))
            self._shapes[part] = {n: p.shape for n, p in bare.named_parameters()}
        return self._shapes[part]

    def _check_names(self, part: str, missing: Sequence[str], strange: Sequence[str]) -> None:
        """Refuse a component whose tensors are not those of its class, which would be filled at random, or dropped."""
        known = [
            n for n in strange if n.endswith("position_ids") or (part.startswith("text") and n.startswith(_UNREAD))
        ]
        strange = [n for n in strange if n not in known]
        if not missing and not strange:
            return
        said = [f"lacks {len(missing)} tensors ('{missing[0]}')"] if missing else []
        said += [f"has {len(strange)} that nothing reads ('{strange[0]}')"] if strange else []
        lora = any(".base_layer." in name for name in strange)
        raise ExpungeError(
            f"'{self.path / part / self.weights(part).name}' {' and '.join(said)}: expected the tensors of the "
            f"{self.classes[part][1]} that its config.json describes"
            + (" (it was saved with a LoRA loaded: unload it, fused or not, before saving)" if lora else "")
        )

    def _refuse_shape(self, part: str, name: str, given: Sequence[int], expected: Sequence[int]) -> None:
        raise ExpungeError(
            f"'{self.path / part}' has a '{name}' of {tuple(given)}: expected {tuple(expected)}, as config.json describes it"
        )

    def all_files(self) -> list[Path]:
        """Every file that the model is opened from: no index of weights that are not read."""
        files = {file for part in self.parts for file in self._read_files(part)}
        own = {self.path / part / self.weights(part).name for part in self.parts if weighty(part)}
        return sorted({self.path / "model_index.json", *(f for f in files if ".index." not in f.name or f in own)})

    def file_of(self, name: str) -> tuple[Path, str]:
        """The file of a tensor, called as parameters are, and its name there; without the level that text encoders may have.

        Raises:
            ExpungeError: if no file of safetensors holds it.
        """
        part, _, inner = name.partition(".")
        files = self._files(part) if self.weights(part).safe else {}
        own = next((n for n in (inner, f"text_model.{inner}") if n in files), None)
        if own is None:
            raise ExpungeError(f"'{name}' is in no safetensors file of '{self.path}': expected one that holds it")
        return files[own], own

    # components -------------------------------------------------------------------------------------------------------
    def _class(self, part: str) -> Any:
        """The class that the index names."""
        library, class_name = self.classes[part]
        if library not in ("diffusers", "transformers"):
            raise ExpungeError(
                f"'{self.path}' names {library}.{class_name} as its {part}: expected a diffusers or transformers class"
            )
        if library == "transformers":
            import transformers as module
        else:
            import diffusers as module
        cls = getattr(module, class_name, None)
        if cls is None:
            raise ExpungeError(
                f"'{self.path}' names {library}.{class_name} as its {part}, which {library} does not have"
            )
        return cls

    @override
    def _build(self, part: str) -> Any:
        cls = self._class(part)
        self._own.check(self._read_files(part))
        if not weighty(part):
            return self._loaded(cls, part, {})
        weights = self.weights(part)
        options: dict[str, Any] = {
            "variant": weights.variant,
            "use_safetensors": weights.safe,
            "output_loading_info": True,
        }
        if self.classes[part][0] == "transformers":  # which says what does not fit only if it may go on
            options |= {"dtype": self.dtype, "ignore_mismatched_sizes": True}
        else:
            options["torch_dtype"] = self.dtype
        model, report = self._loaded(cls, part, options)
        if report["unexpected_keys"] and set(report["unexpected_keys"]) == _without_level(report["missing_keys"]):
            model, report = self._loaded(cls, part, {**options, "key_mapping": _WITH_LEVEL})
        for name, given, expected in report["mismatched_keys"]:
            self._refuse_shape(part, name, given, expected)
        self._check_names(part, sorted(report["missing_keys"]), sorted(report["unexpected_keys"]))
        return model.to(self.device).eval().requires_grad_(False)

    def _loaded(self, cls: Any, part: str, options: Mapping[str, Any]) -> Any:
        folder = self.path / part
        try:
            with quiet():
                return cls.from_pretrained(folder, local_files_only=True, **options)
        except Exception as error:
            raise ExpungeError(f"'{folder}' cannot be loaded as {cls.__name__}: {reason(error)}") from error


def _without_level(names: Iterable[str]) -> set[str]:
    """Names without the level ``text_model`` that some versions of transformers put before them."""
    return {name.removeprefix("text_model.") for name in names}
