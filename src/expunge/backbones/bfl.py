"""FLUX's transformer in one file, as Black Forest Labs and ComfyUI have it; all else comes from a diffusers folder."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.backbones import scaled
from expunge.backbones.folder import Folder
from expunge.backbones.layout import header
from expunge.backbones.parts import Files, quiet
from expunge.core.bfl_names import SWAPPED, home_of, layers_of
from expunge.core.digest import sha256
from expunge.core.errors import ExpungeError, ExpungeWarning

PREFIX = "model.diffusion_model."
"""How names begin in checkpoints of ComfyUI."""
PART = "transformer"
GUIDED = "guidance_in.in_layer.weight"
"""What a file has whose model is told the scale of guidance."""


class Place(NamedTuple):
    """Where a tensor of the transformer stands in a file."""

    key: str
    part: int
    """Which of the tensors it is that stand there one above the other."""
    parts: int
    swapped: bool = False
    """Whether its two halves change places."""


# names ----------------------------------------------------------------------------------------------------------------
def place(name: str) -> Place:
    """Where a tensor of the transformer stands, without the prefix.

    Raises:
        ExpungeError: for one that has no place.
    """
    layer, _, leaf = name.rpartition(".")
    home = home_of(layer)
    if home is None:
        raise ExpungeError(f"FLUX's files have no place for '{name}': expected a FluxTransformer2DModel as released")
    normed = home.module.endswith("_norm")
    return Place(f"{home.module}.{'scale' if normed else leaf}", home.part, home.parts, layer == SWAPPED)


def _rows(where: Place, total: int, rows: int) -> slice:
    """A tensor's rows among all: of parts one above the other only the last is not as high as the others."""
    last = where.part == where.parts - 1
    return slice(total - rows, total) if last else slice(where.part * rows, (where.part + 1) * rows)


def _swapped(tensor: Tensor) -> Tensor:
    return torch.cat([*tensor.chunk(2)][::-1])


def written(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's tensors as a file has them, without a prefix."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        where = place(name)
        parts.setdefault(where.key, {})[where.part] = _swapped(tensor) if where.swapped else tensor
    return {key: torch.cat([those[i] for i in sorted(those)]).contiguous() for key, those in parts.items()}


# a file ---------------------------------------------------------------------------------------------------------------
def prefix_of(keys: frozenset[str]) -> str | None:
    """How the names of FLUX's transformer begin in a file; None for a file without one."""
    return next((p for p in ("", PREFIX) if f"{p}double_blocks.0.img_attn.qkv.weight" in keys), None)


def kind_of(path: Path) -> str:
    """Under which kind of model the settings of a file stand."""
    keys = header(path).keys
    return "flux" if f"{prefix_of(keys)}{GUIDED}" in keys else "flux-schnell"


@final
class TransformerFile(Files):
    """FLUX's transformer from a file, all else from a diffusers folder."""

    def __init__(self, path: Path, folder: Folder) -> None:
        """Open ``path``, the transformer's file; ``folder`` holds the other components, and the transformer's configuration.

        Raises:
            ExpungeError: if the file holds no transformer of FLUX.
        """
        super().__init__(folder.device, folder.dtype)
        self.path, self.folder = path, folder
        stored = header(path)
        self._keys = stored.keys
        prefix = prefix_of(stored.keys)
        if prefix is None:
            raise ExpungeError(f"'{path}' has no 'double_blocks.0.img_attn.qkv.weight': expected a transformer of FLUX")
        self._prefix = prefix
        with scaled.opened(self.path):
            scaled.check_metadata(stored.metadata)
        self.scaled = scaled.has_scales(stored.keys)
        self._shapes: dict[str, torch.Size] | None = None
        beside = sorted(k for k in stored.keys if prefix and not k.startswith(prefix) and k != scaled.MARKER)
        if beside:
            warnings.warn(
                f"'{path}' holds {len(beside)} tensors of other components, which are not read ('{beside[0]}'): those of "
                f"'{folder.path}' are",
                ExpungeWarning,
                stacklevel=4,
            )

    def _expected(self) -> dict[str, torch.Size]:
        """Shapes of the transformer's parameters, all of which the file holds, and no others of its kind.

        Raises:
            ExpungeError: naming one that it lacks, or one that the transformer has not.
        """
        if self._shapes is None:
            shapes = {n: p.shape for n, p in self._bare().named_parameters()}
            wanted = {self._prefix + place(name).key for name in shapes}
            absent = sorted(wanted - self._keys)
            if absent:
                raise ExpungeError(f"'{self.path}' has no '{absent[0]}': expected the whole transformer of FLUX")
            read = {beside for key in wanted for beside in (key, *scaled.beside(key))}
            strange = sorted(k for k in self._keys if self._is_own(k) and k not in read)
            if strange:
                raise ExpungeError(
                    f"'{self.path}' has a '{strange[0]}', which the transformer of '{self.folder.path}' has not: expected the "
                    "folder of this model"
                )
            self._shapes = shapes
        return self._shapes

    def _is_own(self, key: str) -> bool:
        """Whether a tensor is of a module that FLUX's transformer may have."""
        stem = key.removeprefix(self._prefix).rpartition(".")[0]
        return key.startswith(self._prefix) and layers_of(stem) is not None

    def _bare(self) -> Any:
        from accelerate import init_empty_weights
        from diffusers import FluxTransformer2DModel

        with quiet(), init_empty_weights(include_buffers=False):
            return FluxTransformer2DModel.from_config(dict(self.config(PART)))

    @override
    def names(self, part: str) -> list[str]:
        return list(self._expected()) if part == PART else self.folder.names(part)

    @override
    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        if part != PART:
            return self.folder.read(part, names)
        expected = self._expected()
        tensors: dict[str, Tensor] = {}
        with scaled.opened(self.path) as opened:
            for name in names:
                tensor = self._taken(opened, place(name), len(torch.empty(expected[name], device="meta")))
                if tensor.shape != expected[name]:
                    raise ExpungeError(
                        f"'{self.path}' has a transformer whose '{name}' is {tuple(tensor.shape)}: expected "
                        f"{tuple(expected[name])}, as '{self.folder.path}' describes it"
                    )
                tensors[name] = tensor.to(device=self.device, dtype=self.dtype, copy=True).contiguous()
        return tensors

    def _taken(self, opened: Any, where: Place, rows: int) -> Tensor:
        key = self._prefix + where.key
        plain = opened.get_slice(key)
        cut = _rows(where, plain.get_shape()[0], rows) if where.parts > 1 else slice(None)
        eight_bit = scaled.beside(key) & self._keys or plain.get_dtype() not in ("F32", "F16", "BF16")
        tensor = scaled.weight(opened, key, self._keys)[cut] if eight_bit else plain[cut]
        return _swapped(tensor) if where.swapped else tensor

    @override
    def get(self, part: str) -> Any:
        return super().get(part) if part == PART else self.folder.get(part)

    @override
    def built(self, part: str) -> bool:
        return super().built(part) if part == PART else self.folder.built(part)

    @override
    def config(self, part: str) -> Mapping[str, Any]:
        config = self.folder.config(part)
        return {**config, "guidance_embeds": f"{self._prefix}{GUIDED}" in self._keys} if part == PART else config

    @override
    def option(self, name: str, default: Any) -> Any:
        return self.folder.option(name, default)

    @override
    def identity(self) -> str:
        others = self.folder.identity([p for p in self.folder.parts if p != PART])
        return hashlib.sha256(f"{others} {sorted(self.config(PART).items())} {sha256(self.path)}".encode()).hexdigest()

    @override
    def size(self) -> int:
        return self.path.stat().st_size + self.folder.size([p for p in self.folder.parts if p != PART])

    @override
    def _build(self, part: str) -> Any:
        model = self._bare()
        with quiet():
            model.load_state_dict(self.read(part, self.names(part)), strict=False, assign=True)
            return model.to(self.device, self.dtype).eval().requires_grad_(False)
