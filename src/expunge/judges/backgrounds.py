"""Reads the plain background of a testbed's image: an attribute, which prompts name beside their object."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from expunge import testbed
from expunge.core.judge import Judge


@final
class Backgrounds(Judge):
    """Tells the testbed's eight backgrounds by the colours of an image's frame.

    No network: the testbed's scenes stand on plain colours, which its vocabulary lists. A label's score is the share of the
    frame's pixels that are nearest to its colour, and within reach of it. Its confidence is that share. Artists choose their
    own paper, so ask it of no artist.
    """

    name = "backgrounds"
    FRAME = 3
    """Pixels from the edge that are read."""
    REACH = 40.0
    """The largest distance from a colour, in levels of 255 (Euclidean, RGB), at which a pixel is still of it."""

    def __init__(self) -> None:
        """Read the colours of the testbed's vocabulary."""
        colours = testbed.vocabulary()["backgrounds"]
        self.labels: Sequence[str] = list(colours)
        self._colours = torch.tensor(list(colours.values()), dtype=torch.float32)

    @override
    @torch.no_grad()
    def scores(self, images: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b labels"]:
        inner = torch.zeros(images.shape[1:3], dtype=torch.bool)
        inner[self.FRAME : -self.FRAME, self.FRAME : -self.FRAME] = True
        frame = images[:, ~inner].float()
        distance, nearest = torch.cdist(frame, self._colours.expand(len(frame), -1, -1)).min(-1)
        of = torch.nn.functional.one_hot(nearest, len(self.labels)).float()
        return (of * (distance <= self.REACH)[..., None]).mean(1)

    @override
    def confidence(self, images: UInt8[Tensor, "b H W 3"], concept: str) -> Float[Tensor, "b"]:
        return self.scores(images)[:, self.label_ids(concept)].sum(-1)

    @override
    def label_ids(self, concept: str) -> list[int]:
        return super().label_ids(concept.removesuffix(" background"))

    @override
    def identity(self) -> str:
        return "1"
