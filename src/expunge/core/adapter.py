"""Low-rank changes beside a model's layers, each with a gate that reads every prompt of a batch by itself."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from expunge.core.edit import Edit, Provenance, plain
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone, Conditioning


class LowRank(NamedTuple):
    """What is added beside one layer: its input is brought down to r numbers, and those up to its output."""

    down: Tensor
    """``[r, in]``, or ``[r, in, kh, kw]`` beside a convolution."""
    up: Tensor
    """``[out, r]``, or ``[out, r, 1, 1]``."""


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


@final
class Adapter(Edit):
    r"""Low-rank changes beside Linear and convolution layers: :math:`y = W x + s\, U (\gamma \odot D x)`.

    The gate :math:`\gamma` has a number for each row of the batch and each of the r components; SPM's (2312.16145, facilitated
    transport) is how near the row's prompt is to the concept that the component removes. LECO and LoRA have none.
    """

    kind = "adapter"

    def __init__(
        self,
        factors: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        gates: Sequence[Sequence[str]] = (),
        base_sha256: Mapping[str, str] | None = None,
        requires: tuple[str, ...] = (),
        provenance: Provenance | None = None,
    ) -> None:
        """Hold copies of ``factors``, tensors named ``LAYER.down`` and ``LAYER.up``.

        Args:
            factors: the tensors; see `LowRank` for their shapes.
            scale: what the change is multiplied by, s; LoRA's alpha / r.
            gates: for each component the texts that open it (the nearest counts); empty for components that are always open.
            base_sha256: fingerprints, by dtype, of the base's own weights of these layers; None for any base that they fit.
            requires: ids of the edits that were attached when this one was made.
            provenance: how it was made.

        Raises:
            ExpungeError: if tensors are missing, a layer stands there twice, or they do not fit each other or the gates.
        """
        given = as_layers({n: t.detach().clone() for n, t in factors.items()})
        self._stored = {plain(n): n for n in given}
        if len(self._stored) < len(given):
            twice = next(n for n in given if self._stored[plain(n)] != n)
            raise ExpungeError(f"an adapter has '{twice}' twice, under two names: expected each layer once")
        self.layers = {plain(n): part for n, part in given.items()}
        for name, part in self.layers.items():
            rank = len(part.down)
            if part.up.ndim != part.down.ndim or part.up.shape[1] != rank or (gates and rank != len(gates)):
                raise ExpungeError(
                    f"an adapter's '{name}' has down {tuple(part.down.shape)} and up {tuple(part.up.shape)}: expected "
                    f"[r, in …] and [out, r …]{f' with r = {len(gates)}, one for each gate' if gates else ''}"
                )
        if any(not texts for texts in gates):
            raise ExpungeError("a gate of an adapter has no text: expected the words that open it")
        self.scale = scale
        self.gates = tuple(tuple(texts) for texts in gates)
        self.base_sha256 = base_sha256
        self.requires = requires
        self.provenance = provenance

    @override
    def fields(self) -> dict[str, Any]:
        base = {} if self.base_sha256 is None else {"base_sha256": dict(self.base_sha256)}
        return {"scale": self.scale, "gates": [list(texts) for texts in self.gates], **base}

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {f"{self._stored[n]}.{p}": t for n, part in self.layers.items() for p, t in part._asdict().items()}

    def stored_name(self, name: str) -> str:
        """What the edit's file calls the tensor ``name``, a layer's weight: fingerprints and ids are of these names."""
        return f"{self._stored[name.removesuffix('.weight')]}.weight"

    def opened(self, backbone: "Backbone", cond: "Conditioning") -> Float[Tensor, "b r"]:
        """How far the prompts of ``cond`` open each component: SPM's facilitated transport.

        The larger of the cosine between the text's vectors (all of them, as one long vector) and the opening text's, and of the
        part of the opening text's tokens that stand in the prompt.

        Raises:
            ExpungeError: if the conditioning did not come from prompts.
        """
        if cond.tokens is None:
            shown = " / ".join(self.gates[0])
            raise ExpungeError(
                f"the gate of '{shown}' reads the words of a prompt, and an embedding has none: expected a prompt "
                "(or an adapter without gates)"
            )
        with torch.no_grad():
            texts = sorted({text for gate in self.gates for text in gate})
            known = backbone.encode(texts)
            empty = set(backbone.tokenize([""])[0].tolist())
        ours, theirs = cond.embeds.flatten(1).float(), known.embeds.flatten(1).float()
        cosine = torch.cosine_similarity(ours[:, None], theirs[None], dim=-1)
        words = [set(row) - empty for row in known.tokens.tolist()]  # pyright: ignore[reportOptionalMemberAccess]
        rows = [set(row) for row in cond.tokens.tolist()]
        shared = torch.tensor([[len(row & word) / max(1, len(word)) for word in words] for row in rows])
        near = torch.maximum(cosine, shared.to(cosine))
        return torch.stack([near[:, [texts.index(t) for t in gate]].amax(1) for gate in self.gates], 1)

    def fused(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The layers' weights with the change in them, for an adapter without gates; ``base`` holds ``LAYER.weight``.

        Raises:
            ExpungeError: if it has gates, which no fixed weight can follow.
        """
        if self.gates:
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
