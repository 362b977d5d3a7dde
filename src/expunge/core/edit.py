"""An edit: what an eraser gives back, and what a backbone carries in its stack."""

import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.core.registry import opener, saver


@final
@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How an edit was made: what an auditor asks first."""

    eraser: str
    """Catalog name of the method."""
    settings: dict[str, Any]
    targets: list[str]
    anchors: list[str | None]
    retain: list[str]
    model: str
    family: str
    seed: int
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    expunge: str = ""
    """Version of the package that made it."""
    salt_sha256: str = ""
    """Hash of the secret in the key file, for a method that has a key."""
    derived: dict[str, float] = field(default_factory=dict)
    """Numbers that follow from the settings, such as a rate that is scaled by another setting."""
    files: dict[str, str] = field(default_factory=dict)
    """The sha256 of each file that a setting names, by the setting."""
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Images that the method had, by role: their ``count``, whether they were ``given`` or made by the model, and the ``judge``
    that chose them, if one did."""
    search: dict[str, Any] = field(default_factory=dict)
    """How its settings were searched for, if they were: goal, judge, and every try; or where a judge stopped it, with every
    look. ``cost`` is then that of all tries or looks, too."""


_LEVELS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|base_layer|text_model)\.")
"""Levels that a name has while a module is compiled, carries a LoRA of peft's, or (a text encoder's) by the version of
transformers: before 5.6 it has ``text_model``, later not."""


def plain(name: str) -> str:
    """A parameter's or layer's name without the levels that come and go, so that edits made with them fit without them."""
    return _LEVELS.sub("", name)


COVERED = ("eraser", "settings", "targets", "anchors", "retain", "family", "seed", "salt_sha256", "images")
"""What an edit's id covers of its provenance: all that tells one erasure from another, and nothing that two runs differ in.

A model's name is what the user typed; the model itself is covered by the fingerprints of its tensors.
"""


class Edit(ABC):
    """A change to a model that can be attached, detached, saved and loaded."""

    kind: ClassVar[str]
    provenance: Provenance | None
    requires: tuple[str, ...]
    scales: ClassVar[bool] = True
    """Whether it has weights that a strength scales."""
    private: ClassVar[bool] = False
    """Whether its file is for its owner's eyes only."""
    covers_provenance: bool = True
    """Whether its id covers what it says of itself; not that of a file of format 1."""
    key: "Edit | None" = None
    """The private key that was made with it, until it is saved: never a part of the edit's own file."""
    weights: "Weights | None" = None
    """Tensors that guidance replaces beside what it steers, where both were learned together; they come and go with it."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """Everything but tensors, as JSON."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors it stores, by name."""

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the sha256 of its contents and of what it says of itself."""
        said: list[Any] = [self.kind, self.fields(), self.requires]
        if self.covers_provenance and self.provenance is not None:
            said.append({name: getattr(self.provenance, name) for name in COVERED})
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        digest.update(fingerprint(self.tensors()).encode())
        return digest.hexdigest()[:16]

    def attach(self, model: Any, strength: float = 1.0, any_base: bool = False) -> None:
        """Attach to a backbone, or to a diffusers pipeline that you already hold; see `Backbone.attach`."""
        opener()(model).attach(self, strength=strength, any_base=any_base)

    def detach(self, model: Any) -> None:
        """Detach again; after the last detach the model's tensors are bit for bit what they were."""
        opener()(model).detach(self)

    def save(self, path: Any, overwrite: bool = False) -> None:
        """Write one safetensors file; an existing file is refused unless ``overwrite``."""
        saver()(self, path, overwrite=overwrite)


def strengths(strength: float | Sequence[float], edits: Sequence[Edit]) -> list[float]:
    """The strength of each edit: one for all that have weights, or one for each; guidance has none, and is as it is.

    Raises:
        ExpungeError: if there are more or fewer than edits, one is NaN or infinite, or one that is not 1 is for guidance alone.
    """
    given = [strength] * len(edits) if isinstance(strength, int | float) else list(strength)
    for one in given:
        if not math.isfinite(one):
            raise ExpungeError(f"strength {one} of an edit: expected a finite number")
    if len(given) != len(edits):
        raise ExpungeError(f"{len(given)} strengths for {len(edits)} edits: expected one, or one for each")
    aimed = [(edit, one) for edit, one in zip(edits, given, strict=True) if not edit.scales and one != 1.0]
    if aimed and (len(aimed) == len(edits) or not isinstance(strength, int | float)):
        raise ExpungeError(
            f"strength {aimed[0][1]} for a {aimed[0][0].kind} edit: expected 1, since it has no weights to scale"
        )
    return [float(one) if edit.scales else 1.0 for one, edit in zip(given, edits, strict=True)]


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or an infinity; None if none does."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            values = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()  # float8 has no aminmax
            if not all(math.isfinite(end) for end in torch.aminmax(values)):
                return name
    return None


def fingerprints(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Fingerprints of a base as it would read in each precision, so that an edit made in one is known in the others."""
    return {dtype: fingerprint_as(tensors, dtype) for dtype in ("float32", "float16", "bfloat16")}


def fingerprint_as(tensors: dict[str, Tensor], dtype: str) -> str:
    """The fingerprint of tensors as they read in a precision."""
    return fingerprint({n: t.to(getattr(torch, dtype)) for n, t in tensors.items()})


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Sha256 of names and values; values count as float32, so a dtype that holds them exactly does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


@final
class Weights(Edit):
    """Replaced tensors, exact in the base's dtype."""

    kind = "weights"

    def __init__(
        self,
        replaced: dict[str, Tensor],
        *,
        base_sha256: dict[str, str],
        requires: tuple[str, ...] = (),
        provenance: Provenance | None = None,
    ) -> None:
        """Hold copies of ``replaced`` for the base whose own values of them have the fingerprints ``base_sha256``, by dtype.

        ``requires`` lists the ids of the edits that were attached when this one was made.
        """
        if not replaced:
            raise ExpungeError("a weights edit replaces no tensor: expected at least one")
        self._stored = {plain(n): n for n in replaced}
        if len(self._stored) < len(replaced):
            twice = next(n for n in replaced if self._stored[plain(n)] != n)
            raise ExpungeError(f"a weights edit replaces '{twice}' twice, under two names: expected each tensor once")
        self.replaced = {plain(n): t.detach().clone() for n, t in replaced.items()}
        self.base_sha256 = base_sha256
        self.requires = requires
        self.provenance = provenance

    @override
    def fields(self) -> dict[str, Any]:
        return {"base_sha256": self.base_sha256}

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {self._stored[n]: t for n, t in self.replaced.items()}

    def stored_name(self, name: str) -> str:
        """What the edit's file calls the tensor ``name``: fingerprints and ids are of these names."""
        return self._stored[name]


def weights_of(edit: Edit) -> Weights | None:
    """The tensors that an edit replaces: all that a weights edit is, and what some guidance has; None if it replaces none."""
    return edit if isinstance(edit, Weights) else edit.weights
