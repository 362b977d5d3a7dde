"""Rounding: the edited weights in a coarser precision, as a publisher or a user may store them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.core.attack import Attack, Provocation
from expunge.core.catalog import Paper
from expunge.core.edit import Edit, weights_of
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.knowledge import Kind
from expunge.core.query import Query
from expunge.core.victim import Access, WhiteBox


@final
@dataclass(frozen=True, kw_only=True)
class Rounding(Attack[WhiteBox]):
    r"""Round the tensors that edits replaced to few bits: a small change of weights may fall back to where it came from.

    Zhang et al. 2024 (2410.16454) find that quantising unlearned language models brings knowledge back. ``int8`` and ``int4``
    round each row of a matrix to whole multiples of its largest number over 127 or 7, ``float8`` to e4m3 after the same
    scaling (to its largest, 448). The queries stay as they are; the rounded tensors are an edit on top. To run everything in
    half precision instead, measure with ``--dtype float16``.
    Deviations: their method is for language models; of a model only what edits replaced is rounded, as the rest says nothing
    of the erasure. Edits that replace no tensors (adapters, guidance) are refused. On the original, which nothing replaced,
    nothing is rounded.
    """

    paper: ClassVar[Paper] = Paper(
        "Catastrophic Failure of LLM Unlearning via Quantization",
        "Zhang et al.",
        2024,
        "2410.16454",
        "https://github.com/zzwjames/FailureLLMUnlearning",
    )
    access: ClassVar[Access] = "white box"
    shares: ClassVar[bool] = False
    returns: ClassVar[str] = "when its weights are rounded to {to}"
    draws: ClassVar[bool] = False
    knows: ClassVar[Mapping[str, Kind]] = {}
    tuning: ClassVar[Sequence[str]] = ("to",)
    to: Literal["int8", "int4", "float8"] = "int8"
    """What the tensors are rounded to."""

    @override
    def fits(self, edits: Sequence[Edit]) -> None:
        other = next((edit for edit in edits if weights_of(edit) is None), None)
        if other is not None:
            raise ExpungeError(
                f"rounding against edit {other.id}, which replaces no tensors: expected edits of weights"
            )

    @override
    def provoke(self, victim: WhiteBox, task: Task, queries: Sequence[Query]) -> Provocation:
        backbone, names = victim.backbone, {target.name for target in task.targets}
        self.fits(backbone.edits)
        weights = [weights_of(edit) for edit in backbone.edits]
        replaced = sorted({n for own in weights if own is not None for n in own.replaced})
        asked = [query for query in queries if query.label in names]
        if not replaced:  # the original, to calibrate on, has nothing that was replaced
            return Provocation(queries=asked)
        rounded = {name: rounding(tensor, self.to) for name, tensor in backbone.tensors(replaced).items()}
        return Provocation(queries=asked, edit=backbone.edit_of(rounded))


def rounding(tensor: Tensor, to: Literal["int8", "int4", "float8"]) -> Tensor:
    """A tensor's numbers as ``to`` holds them, in the tensor's own precision; each row (of the first dimension) has a scale."""
    rows = tensor.detach().float().reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.detach().float()[None]
    largest = {"int8": 127.0, "int4": 7.0, "float8": 448.0}[to]
    scale = rows.abs().amax(1, keepdim=True) / largest
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    steps = rows / scale
    held = steps.to(torch.float8_e4m3fn).float() if to == "float8" else steps.round()
    return (held * scale).reshape(tensor.shape).to(tensor)
