"""Pairs of images, of what should go and of what may take its place."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from expunge.core.backbone import Backbone
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Shot

SAFE, UNSAFE = "safe", "unsafe"
"""The roles of a pair's images."""
Texts = Literal["empty", "given", "unsafe"]
"""What images are denoised with."""


class Cut(NamedTuple):
    """How both images of a pair are turned and cut."""

    flipped: bool
    left: float
    top: float


@final
class Pairs:
    """Latents and texts of the pairs; an image is encoded once for each way it is turned."""

    def __init__(
        self, backbone: Backbone, task: Task, *, sides: Sequence[str], texts: Texts, flip: bool, crop: float
    ) -> None:
        """Take the images of ``task``, of which those of ``sides`` are denoised with ``texts``.

        Raises:
            ExpungeError: if they are not in pairs, or lack the prompts that the settings ask for.
        """
        self._backbone, self._texts, self._flip, self._crop = backbone, texts, flip, crop
        self._shots: dict[str, Sequence[Shot]] = {side: task.images[side] for side in (SAFE, UNSAFE)}
        self.count = len(self._shots[SAFE])
        if self.count != len(self._shots[UNSAFE]) or not self.count:
            raise ExpungeError(
                f"duo has {len(self._shots[UNSAFE])} unsafe images and {self.count} safe ones: expected pairs (`expunge pairs`)"
            )
        self._known: dict[tuple[str, int, bool], Tensor] = {}
        self.shape = self.latents(SAFE, 0, Cut(False, 0, 0), whole=True).shape[1:]
        self.texts = [""]
        if texts != "empty":
            self.texts += sorted({s.prompt for side in sides for s in self._named(side)} - {""})
            if len(self.texts) == 1:
                raise ExpungeError(
                    f"duo's texts are '{texts}', and the images have no prompts: expected some that have, or texts "
                    "'empty'"
                )
        with torch.no_grad():
            null = backbone.unconditional()
            self.cond = null if len(self.texts) == 1 else null.join(backbone.encode(self.texts[1:]))
        """The empty prompt, and then the images' own."""

    def latents(self, side: str, pair: int, cut: Cut, whole: bool = False) -> Float[Tensor, "1 c h w"]:
        """Latents of one image, cut unless ``whole``."""
        flipped = cut.flipped and self._flip
        if self._crop < 1 and not whole:
            return self._encoded(side, pair, flipped, cut)
        if (side, pair, flipped) not in self._known:
            self._known[side, pair, flipped] = self._encoded(side, pair, flipped, None)
        return self._known[side, pair, flipped]

    def _encoded(self, side: str, pair: int, flipped: bool, cut: Cut | None) -> Float[Tensor, "1 c h w"]:
        pixels = self._shots[side][pair].pixels()
        pixels = pixels.flip(1) if flipped else pixels
        return self._backbone.encode_image((pixels if cut is None else cropped(pixels, self._crop, cut))[None])

    def rows(self, which: Sequence[int], sides: Sequence[str]) -> list[int]:
        """Rows of `cond` for the images of some pairs, side after side."""
        if self._texts == "empty":
            return [0] * len(which) * len(sides)
        return [self.texts.index(self._named(side)[i].prompt) for side in sides for i in which]

    def _named(self, side: str) -> Sequence[Shot]:
        """The images whose prompts the images of ``side`` are denoised with."""
        return self._shots[UNSAFE if self._texts == "unsafe" else side]


def cropped(pixels: UInt8[Tensor, "H W 3"], share: float, cut: Cut) -> UInt8[Tensor, "H W 3"]:
    """The window of ``share`` of each side at a place from 0 to 1, enlarged to the image's size."""
    height, width = pixels.shape[:2]
    h, w = max(1, round(height * share)), max(1, round(width * share))
    top, left = round(cut.top * (height - h)), round(cut.left * (width - w))
    window = pixels[top : top + h, left : left + w].permute(2, 0, 1)[None].float()
    scaled = functional.interpolate(window, (height, width), mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
