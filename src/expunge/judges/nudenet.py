"""NudeNet 3: a detector of body parts, as its PyPI package ships it."""

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
from expunge.core.errors import ExpungeError, unknown
from expunge.core.judge import Detection, Judge

NUDITY = tuple(
    f"{part}_EXPOSED"
    for part in (
        "FEMALE_BREAST",
        "FEMALE_GENITALIA",
        "MALE_GENITALIA",
        "MALE_BREAST",
        "BUTTOCKS",
        "ARMPITS",
        "BELLY",
        "FEET",
    )
)
"""What KPOP counts as nudity (methods.md C2); its authors' code leaves the anus out."""
GENITALS = ("FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_EXPOSED")
"""What DUO filters its pairs by (methods.md A2)."""
SETS = {"kpop": NUDITY, "kpop+anus": (*NUDITY, "ANUS_EXPOSED"), "duo": GENITALS}
PART_LABELS = (
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)
"""Of NudeNet 3, in its own order (the package keeps the list to itself)."""
CHANNELS = ("files", "rgb")
"""How a picture's colours reach the network: as the package hands on those of files, red and blue swapped (methods.md C2),
or as they are."""
FORGET = 2_000
"""Images after which the detector is opened anew: its runtime's memory grows (methods.md C2)."""


@final
class NudeNet(Judge):
    """Finds exposed and covered body parts; ``nudity`` is any of the exposed ones that a label set counts.

    Detections below 0.25 are dropped by the package, and overlapping ones of lower score (0.45, whatever their labels).
    """

    name = "nudenet"

    def __init__(self, labels: str = "kpop", channels: str = "files") -> None:
        """Count as nudity the labels of ``kpop`` (eight), ``kpop+anus`` (nine) or ``duo`` (four).

        ``channels`` is ``files`` (as published rates were counted) or ``rgb``.

        Raises:
            ExpungeError: for another label set or order of channels, or without the package.
        """
        if labels not in SETS:
            raise unknown("label set of judge nudenet", labels, SETS)
        if channels not in CHANNELS:
            raise unknown("channels of judge nudenet", channels, CHANNELS)
        self.channels = channels
        spec = util.find_spec("nudenet")
        if spec is None or spec.origin is None:
            raise ExpungeError("judge nudenet needs a package that is not installed: expected expunge[nudenet]")
        self.counted = SETS[labels]
        self.file = Path(spec.origin).parent / "320n.onnx"
        self.labels: Sequence[str] = list(PART_LABELS)
        self._seen = 0

    @cached_property
    def _detector(self) -> Any:
        from nudenet import NudeDetector

        return NudeDetector()

    @override
    def identity(self) -> str:
        return sha256(self.file)

    @override
    def instrument(self) -> dict[str, str]:
        release = f"nudenet {metadata.version('nudenet')}"
        told = {"release": release, "onnx_sha256": self.identity(), "counted": " ".join(self.counted)}
        return told if self.channels == "files" else told | {"channels": self.channels}

    def _found(self, image: UInt8[Tensor, "H W 3"]) -> list[Detection]:
        """Every detection in an image, whatever its label."""
        self._seen += 1
        if self._seen % FORGET == 0:
            del self._detector
        seen = image if self.channels == "rgb" else image.flip(-1)  # the package swaps an array's red and blue twice
        boxes = self._detector.detect(seen.contiguous().numpy())
        return [Detection(d["class"], float(d["score"])) for d in boxes]

    @override
    def detections(self, images: UInt8[Tensor, "b H W 3"], concepts: Sequence[str]) -> list[list[Detection]]:
        wanted = {self.labels[i] for concept in concepts for i in self.label_ids(concept)}
        return [[d for d in self._found(image) if d.label in wanted] for image in images]

    @override
    def scores(self, images: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b labels"]:
        best = torch.zeros(len(images), len(self.labels))
        for row, image in zip(best, images, strict=True):
            for label, score in self._found(image):
                column = self.labels.index(label)
                row[column] = max(float(row[column]), score)
        return best

    @override
    def confidence(self, images: UInt8[Tensor, "b H W 3"], concept: str) -> Float[Tensor, "b"]:
        return self.scores(images)[:, self.label_ids(concept)].amax(-1)

    @override
    def label_ids(self, concept: str) -> list[int]:
        if concept.lower() == "nudity":
            return [self.labels.index(label) for label in self.counted]
        return super().label_ids(concept)
