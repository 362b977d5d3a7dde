"""The components of a model: from a diffusers folder, built when first used, or from a pipeline that the user holds."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from expunge.core.errors import ExpungeError, reason

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Parts(ABC):
    """Where components come from."""

    @abstractmethod
    def names(self, part: str) -> list[str]:
        """Names of a component's parameters."""

    @abstractmethod
    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Parameters of a component, which need not be built for it."""

    @abstractmethod
    def built(self, part: str) -> bool:
        """Whether a component is in memory."""

    @abstractmethod
    def get(self, part: str) -> Any:
        """A component; None for one that the model is without."""

    @abstractmethod
    def config(self, part: str) -> Mapping[str, Any]:
        """The configuration of a component, which need not be built for it."""

    @abstractmethod
    def option(self, name: str, default: Any) -> Any:
        """An option of the pipeline as a whole, as the model's index has it."""


class Files(Parts):
    """Components that lie in files, and are built when they are first used."""

    device: torch.device
    dtype: torch.dtype
    missing: Collection[str] = ()
    """Components that the model is without."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._built: dict[str, Any] = {}

    @override
    def built(self, part: str) -> bool:
        return part in self._built

    @override
    def get(self, part: str) -> Any:
        if part in self.missing:
            return None
        if part not in self._built:
            self._built[part] = self._build(part)
        return self._built[part]

    @abstractmethod
    def _build(self, part: str) -> Any:
        """Make a component from its files."""

    @abstractmethod
    def identity(self) -> str:
        """Sha256 of everything that the model is made from, wherever it lies."""


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
    ) -> None:
        """Open ``path``, which should hold a ``pipeline`` of these parts, but perhaps for the ``optional`` ones.

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

    def weights_file(self, part: str) -> tuple[Path, str | None]:
        """The safetensors file (or shard index) of a component, and its variant."""
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        variants = ["fp16", None] if self.dtype == torch.float16 else [None, "fp16"]
        for variant in variants:
            dotted = f".{variant}" if variant else ""
            for name in (f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"):
                if (self.path / part / name).is_file():
                    return self.path / part / name, variant
        raise ExpungeError(f"'{self.path / part}' has no safetensors weights: expected {stem}.safetensors")

    @override
    def identity(self) -> str:
        texts = [
            f for part in self.parts for f in (self.path / part).iterdir() if f.suffix in (".json", ".txt", ".model")
        ]
        weights = [f for part in self.parts if weighty(part) for f in set(self._files(part).values())]
        digest = hashlib.sha256()
        for file in sorted({self.path / "model_index.json", *texts, *weights}):
            digest.update(f"{file.relative_to(self.path)} {sha256(file)}\n".encode())
        return digest.hexdigest()

    @override
    def config(self, part: str) -> Mapping[str, Any]:
        return read_json(self.path / part / "config.json")

    @override
    def option(self, name: str, default: Any) -> Any:
        return self.classes.get(name, default)

    def _files(self, part: str) -> dict[str, Path]:
        """File of each tensor of a component."""
        file, _ = self.weights_file(part)
        if file.suffix == ".json":
            shards = read_json(file).get("weight_map", {})
            return {n: file.parent / f for n, f in shards.items()}
        try:
            with safe_open(file, "pt") as opened:
                return dict.fromkeys(opened.keys(), file)
        except (SafetensorError, OSError) as error:
            raise ExpungeError(f"'{file}' is damaged: {error}") from error

    @override
    def names(self, part: str) -> list[str]:
        if part in self._built:
            return [n for n, _ in self._built[part].named_parameters()]
        return list(self._files(part))

    @override
    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        files = self._files(part)
        found: dict[str, Tensor] = {}
        try:
            for file in {files[n] for n in names}:
                with safe_open(file, "pt") as opened:
                    for name in names:
                        if files[name] == file:
                            found[name] = opened.get_tensor(name).to(device=self.device, dtype=self.dtype)
        except (SafetensorError, OSError) as error:
            raise ExpungeError(f"'{self.path / part}' is damaged: {error}") from error
        return found

    @override
    def _build(self, part: str) -> Any:
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
        folder = self.path / part
        options: dict[str, Any] = {"local_files_only": True}
        if weighty(part):
            _, options["variant"] = self.weights_file(part)
            options["dtype" if library == "transformers" else "torch_dtype"] = self.dtype
            options["use_safetensors"] = True
        try:
            with quiet():
                loaded = cls.from_pretrained(folder, **options)
        except Exception as error:
            raise ExpungeError(f"'{folder}' cannot be loaded as {class_name}: {reason(error)}") from error
        return loaded if "variant" not in options else loaded.to(self.device).eval().requires_grad_(False)


class quiet:  # noqa: N801  (used as a statement: `with quiet()`)
    """Silences the loading reports of diffusers and transformers."""

    def __enter__(self) -> None:
        import diffusers  # noqa: F401  (its import sets its own log level, so it comes first)

        self.loggers = [logging.getLogger(n) for n in ("diffusers", "transformers")]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.CRITICAL)
        from transformers.utils import logging as reports

        self.bar = reports.is_progress_bar_enabled()
        reports.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
        if self.bar:
            from transformers.utils import logging as reports

            reports.enable_progress_bar()


def weighty(part: str) -> bool:
    """Whether a component has weights."""
    return not part.startswith(("tokenizer", "scheduler"))


def sha256(file: Path) -> str:
    """Hash of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ExpungeError: if it is damaged.
    """
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{file}' is damaged: {error}") from error
