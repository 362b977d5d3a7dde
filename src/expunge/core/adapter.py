"""Low-rank changes beside a model's layers, with a gate that may read every prompt of a batch by itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from expunge.core.conditioning import Conditioning
from expunge.core.edit import Edit, Provenance, plain
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone


class LowRank(NamedTuple):
    """What is added beside one layer: its input is brought down to r numbers, and those up to its output."""

    down: Tensor
    """``[r, in]``, or ``[r, in, kh, kw]`` beside a convolution."""
    up: Tensor
    """``[out, r]``, or ``[out, r, 1, 1]``."""

    def on(self, device: torch.device) -> "LowRank":
        """Both matrices there; where they are if it is the device of what is offloaded."""
        return self if device.type == "meta" else LowRank(self.down.to(device), self.up.to(device))


def low_rank(layer: torch.nn.Module, x: Tensor, part: LowRank, gate: Float[Tensor, "b r"] | None = None) -> Tensor:
    """What ``part`` adds to the output of ``layer`` for the input ``x``; ``gate`` scales each row's r numbers.

    ``x`` may have several equal parts of as many rows as ``gate`` (a guided pair, or PAG's half of three), for which it counts
    alike.
    """
    down, up = part.down.to(x), part.up.to(x)
    if gate is not None:
        gate = gate.repeat(len(x) // len(gate), 1)
    if isinstance(layer, torch.nn.Conv2d):
        inner = functional.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)  # pyright: ignore[reportArgumentType]
        return functional.conv2d(inner if gate is None else inner * gate.to(x)[:, :, None, None], up)
    inner = functional.linear(x, down)
    if gate is not None:
        inner = inner * gate.to(x).view(len(gate), *(1,) * (inner.ndim - 2), -1)
    return functional.linear(inner, up)


def as_layers(factors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Tensors named ``LAYER.down`` and ``LAYER.up``, by layer.

    Raises:
        ExpungeError: if a layer has one without the other, a name has neither ending, or ranks differ.
    """
    stray = [n for n in factors if not n.endswith((".down", ".up"))]
    if stray or not factors:
        raise ExpungeError(f"an adapter's tensor '{stray[0] if stray else ''}': expected names in .down and .up")
    layers = sorted({n.rpartition(".")[0] for n in factors})
    for layer in layers:
        for part in ("down", "up"):
            if f"{layer}.{part}" not in factors:
                raise ExpungeError(f"an adapter has no '{layer}.{part}': expected both .down and .up")
    return {n: LowRank(factors[f"{n}.down"], factors[f"{n}.up"]) for n in layers}


class Gate(ABC):
    """What opens the components of an adapter, for each prompt by itself; it lives beside the method that has it."""

    texts: tuple[tuple[str, ...], ...]
    """For each component the texts that open it."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """What an edit's file says of it, as JSON; ``gates`` holds the texts."""

    @abstractmethod
    def opened(self, backbone: "Backbone", cond: Conditioning) -> Float[Tensor, "b r"]:
        """How far the prompts of ``cond`` open each component, from 0 to 1; differentiable.

        Raises:
            ExpungeError: if the conditioning does not say what it reads.
        """


@final
class Adapter(Edit):
    r"""Low-rank changes beside Linear and convolution layers: :math:`y = W x + s\, U (\gamma \odot D x)`.

    The gate :math:`\gamma` has a number for each row of the batch and each of the r components; see `Gate`. LECO and LoRA have
    none.
    """

    kind = "adapter"

    def __init__(
        self,
        factors: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        gate: Gate | None = None,
        base_sha256: Mapping[str, str] | None = None,
        requires: tuple[str, ...] = (),
        provenance: Provenance | None = None,
    ) -> None:
        """Hold copies of ``factors``, tensors named ``LAYER.down`` and ``LAYER.up``.

        Args:
            factors: the tensors; see `LowRank` for their shapes.
            scale: what the change is multiplied by, s; LoRA's alpha / r.
            gate: what opens its components; None for components that are always open.
            base_sha256: fingerprints, by dtype, of the base's own weights of these layers; None for any base that they fit.
            requires: ids of the edits that were attached when this one was made.
            provenance: how it was made.

        Raises:
            ExpungeError: if tensors are missing, a layer stands there twice, or they do not fit each other or the gate.
        """
        given = as_layers({n: t.detach().clone() for n, t in factors.items()})
        self._stored = {plain(n): n for n in given}
        if len(self._stored) < len(given):
            twice = next(n for n in given if self._stored[plain(n)] != n)
            raise ExpungeError(f"an adapter has '{twice}' twice, under two names: expected each layer once")
        self.layers = {plain(n): part for n, part in given.items()}
        self.gate = gate
        for name, part in self.layers.items():
            rank = len(part.down)
            if (
                part.up.ndim != part.down.ndim
                or part.up.shape[1] != rank
                or (gate is not None and rank != len(gate.texts))
            ):
                raise ExpungeError(
                    f"an adapter's '{name}' has down {tuple(part.down.shape)} and up {tuple(part.up.shape)}: expected "
                    f"[r, in …] and [out, r …]{f' with r = {len(gate.texts)}, one for each gate' if gate else ''}"
                )
        self.scale = scale
        self.base_sha256 = base_sha256
        self.requires = requires
        self.provenance = provenance

    @override
    def fields(self) -> dict[str, Any]:
        base = {} if self.base_sha256 is None else {"base_sha256": dict(self.base_sha256)}
        gate = {"gates": []} if self.gate is None else self.gate.fields()
        return {"scale": self.scale, **gate, **base}

    @property
    def gates(self) -> tuple[tuple[str, ...], ...]:
        """For each component the texts that open it; empty for components that are always open."""
        return () if self.gate is None else self.gate.texts

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {f"{self._stored[n]}.{p}": t for n, part in self.layers.items() for p, t in part._asdict().items()}

    def stored_name(self, name: str) -> str:
        """What the edit's file calls the tensor ``name``, a layer's weight: fingerprints and ids are of these names."""
        return f"{self._stored[name.removesuffix('.weight')]}.weight"

    def fused(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The layers' weights with the change in them, for an adapter without gates; ``base`` holds ``LAYER.weight``.

        Raises:
            ExpungeError: if it has a gate, which no fixed weight can follow.
        """
        if self.gate is not None:
            raise ExpungeError(
                f"edit {self.id} has gates that read each prompt ({', '.join(g[0] for g in self.gates)}): expected an adapter "
                "without gates to be fused"
            )
        fused: dict[str, Tensor] = {}
        for name, part in self.layers.items():
            weight = base[f"{name}.weight"]
            change = part.up.flatten(1).float() @ part.down.flatten(1).float()
            fused[f"{name}.weight"] = (weight.float() + self.scale * change.view(weight.shape).to(weight.device)).to(
                weight
            )
        return fused


def open_gates(backbone: "Backbone", cond: Conditioning, known: dict[str, Any]) -> dict[str, Float[Tensor, "b r"]]:
    """How far each row opens the attached adapters with a gate, by id; ``known`` keeps what was read for a generation."""
    gates: dict[str, Tensor] = {}
    for edit in backbone.edits:
        if isinstance(edit, Adapter) and edit.gate is not None:
            name = f"gates {edit.id}"
            if name not in known:
                known[name] = edit.gate.opened(backbone, cond)
            gates[edit.id] = known[name]
    return gates
