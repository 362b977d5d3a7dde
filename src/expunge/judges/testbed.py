"""The testbed's own judges: networks trained on real drawings only, apart from the model they judge."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from typing_extensions import override

from expunge import testbed
from expunge.core.errors import ExpungeError
from expunge.core.judge import Detection, Judge
from expunge.testbed.networks import as_input


@final
class Testbed(Judge):
    """Names the objects, or the style, of a 64x64 testbed image, and tells a picture from noise.

    A category ("weapon", "animal") is a concept too: any of its objects counts. Judge A reports; judge B, of another
    architecture and seed, is the oracle that methods and attacks may ask.
    """

    name = "testbed"

    def __init__(self, network: str = "a", labels: str = "objects") -> None:
        """Use judge ``network`` to tell ``labels``."""
        if network not in ("a", "b") or labels not in ("objects", "styles"):
            given = f"network '{network}' and labels '{labels}'"
            raise ExpungeError(f"judge testbed with {given}: expected a or b, objects or styles")
        self.network = network
        self.asks = labels
        words = testbed.vocabulary()
        self.labels: Sequence[str] = list(words["objects"]) if labels == "objects" else words["styles"]

    @cached_property
    def _net(self) -> Any:
        return testbed.network(f"judge_{self.network}")

    @override
    def identity(self) -> str:
        ways = ("networks", f"judge_{self.network}.safetensors"), ("vocabulary.json",)
        for way in ways:
            testbed.sha256(*way)  # a plan is refused before it makes images for another testbed's judge
        files = [testbed.FOLDER.joinpath(*way) for way in ways]
        return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

    @torch.no_grad()
    def _answers(self, images: UInt8[Tensor, "b H W 3"]) -> dict[str, Tensor]:
        return self._net(as_input(images))

    @override
    def scores(self, images: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b labels"]:
        return self._answers(images)["objects" if self.asks == "objects" else "style"]

    @override
    def detections(self, images: UInt8[Tensor, "b H W 3"], concepts: Sequence[str]) -> list[list[Detection]]:
        """Each concept with the judge's confidence, a class by the name of its likeliest object: a ``weapon`` as a bomb."""
        sure = self.scores(images).float().softmax(-1)
        detections: list[list[Detection]] = [[] for _ in images]
        for concept in concepts:
            ids = self.label_ids(concept)
            names = [concept] if len(ids) == 1 else [self.labels[i] for i in ids]
            best, whole = sure[:, ids].argmax(1).tolist(), sure[:, ids].sum(-1).tolist()
            for image, one, confidence in zip(detections, best, whole, strict=True):
                image.append(Detection(names[one], confidence))
        return detections

    @override
    def valid(self, images: UInt8[Tensor, "b H W 3"]) -> Bool[Tensor, "b"]:
        return self._answers(images)["valid"][:, 0] > 0

    @override
    def label_ids(self, concept: str) -> list[int]:
        if self.asks == "styles":
            return super().label_ids(concept.removesuffix(" style"))
        words = testbed.vocabulary()["objects"]
        members = [i for i, label in enumerate(self.labels) if words[label]["category"] == concept]
        return members or super().label_ids(concept)
