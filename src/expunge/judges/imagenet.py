"""ImageNet's classes, told by torchvision's ResNet-50: the judge of the papers' object tables."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from expunge.core.judge import Judge
from expunge.pretrained import weights as stored


@final
class ImageNet(Judge):
    """Names one of ImageNet's 1,000 classes: ResNet-50 with torchvision's second weights and their own transforms.

    The judge of ESR and PSR in KPOP's tables (methods.md C1). It cannot tell a picture from noise.
    """

    name = "imagenet"

    def __init__(self, weights: str = stored.OFFICIAL) -> None:
        """Use ``official`` weights (torchvision's address), those of a file, or ``random`` ones (for trying things out).

        Raises:
            ExpungeError: without torchvision.
        """
        self.weights = weights
        models = stored.package("torchvision.models", "metrics", "judge imagenet")
        self._published: Any = models.ResNet50_Weights.DEFAULT
        self.labels: Sequence[str] = self._published.meta["categories"]

    @cached_property
    def _net(self) -> torch.nn.Module:
        models = stored.package("torchvision.models", "metrics", "judge imagenet")
        net = stored.untrained(models.resnet50)
        if self.weights != stored.RANDOM:
            what = "torchvision's ResNet-50"
            stored.fill(net, stored.load(self.weights, self._published.url, what).tensors, what)
        return net

    @override
    def identity(self) -> str:
        return f"{self._published} {stored.origin(self.weights)}"

    @override
    def instrument(self) -> dict[str, str]:
        transforms = self._published.transforms()
        preprocessing = f"torchvision: {transforms.resize_size[0]}, centre {transforms.crop_size[0]}"
        return {
            "network": str(self._published),
            "weights": stored.origin(self.weights),
            "preprocessing": preprocessing,
        }

    @torch.no_grad()
    @override
    def scores(self, images: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b labels"]:
        return self._net(self._published.transforms()(images.permute(0, 3, 1, 2)))
