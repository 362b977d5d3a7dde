"""The components of a model: from files, built when first used, or from a pipeline that the user holds."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from expunge.core.errors import ExpungeError, unknown

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def device_and_dtype(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """A device that there is, and a precision, by their names."""
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ExpungeError(f"device '{device}' is not to be had here: expected cpu, cuda, cuda:0 or mps") from error
    return where, DTYPES[dtype]


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

    def has(self, part: str) -> bool:
        """Whether the model has a component, which need not be built for it."""
        return self.get(part) is not None

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
    scaled: bool = False
    """Whether the files hold 8-bit numbers with scales, which are multiplied out."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._built: dict[str, Any] = {}

    @override
    def built(self, part: str) -> bool:
        return part in self._built

    @override
    def has(self, part: str) -> bool:
        return part not in self.missing

    @override
    def get(self, part: str) -> Any:
        if not self.has(part):
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

    @abstractmethod
    def size(self) -> int:
        """Bytes of the files that hold its weights."""


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


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ExpungeError: if it is damaged, or not there.
    """
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError as error:
        others = ", ".join(sorted(f.name for f in file.parent.glob("*"))) or "nothing"
        raise ExpungeError(f"there is no '{file}': expected one (in its folder is {others})") from error
    except (OSError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{file}' is damaged: {error}") from error
