"""Finds the marks that `testbed.marks` draws, by how much any place of an image looks like one."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from expunge.core.judge import Judge
from expunge.testbed import marks


@final
class Marks(Judge):
    """Looks for known marks by template matching: the largest normalised cross-correlation at any place of an image.

    No network, and no detector of watermarks in general: it finds these marks at the size they are drawn in, and no others. Its
    confidence is the correlation itself.
    """

    name = "marks"
    labels: Sequence[str] = ("watermark", "qr code", "text")

    @override
    @torch.no_grad()
    def scores(self, images: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b labels"]:
        return torch.stack([marks.correlations(images, label).amax((1, 2)) for label in self.labels], 1)

    @override
    @torch.no_grad()
    def confidence(self, images: UInt8[Tensor, "b H W 3"], concept: str) -> Float[Tensor, "b"]:
        (found,) = self.label_ids(concept)
        return marks.correlations(images, self.labels[found]).amax((1, 2)).clamp(min=0)

    @override
    def identity(self) -> str:
        return "1"
