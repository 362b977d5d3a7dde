"""A judge looks at images and says what they show; it knows nothing of prompts or models."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from expunge.core.errors import unknown


class Detection(NamedTuple):
    """Something that a judge found in an image."""

    label: str
    score: float


class Judge(ABC):
    """Scores labels for images."""

    name: ClassVar[str]
    ranks: ClassVar[bool] = True
    """Whether an image is of the label that scores most; a detector's may show several of them, or none."""
    labels: Sequence[str]

    @abstractmethod
    def scores(self, images: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b labels"]:
        """A score for every label, higher is likelier; only the order within a row is used for ranks."""

    def confidence(self, images: UInt8[Tensor, "b H W 3"], concept: str) -> Float[Tensor, "b"]:
        """How sure it is that each image shows ``concept``, from 0 to 1.

        The share of the concept's labels in a softmax over all scores; a detector has a confidence of its own.
        """
        return self.scores(images).float().softmax(-1)[:, self.label_ids(concept)].sum(-1)

    def detections(self, images: UInt8[Tensor, "b H W 3"], concepts: Sequence[str]) -> list[list[Detection]]:
        """What each image has of ``concepts``: a detector's findings, or each concept with the judge's confidence."""
        sure = [self.confidence(images, concept).tolist() for concept in concepts]
        return [[Detection(*pair) for pair in zip(concepts, row, strict=True)] for row in zip(*sure, strict=True)]

    def shows(self, images: UInt8[Tensor, "b H W 3"], concept: str) -> Bool[Tensor, "b"]:
        """Whether each image shows ``concept`` more than anything else; of a detector, whether it is surer than its threshold.

        That is its paper's, or half.
        """
        if self.ranks:
            return torch.isin(self.scores(images).argmax(1), torch.tensor(self.label_ids(concept)))
        return self.confidence(images, concept) > (0.5 if self.threshold is None else self.threshold)

    @property
    def threshold(self) -> float | None:
        """Above which confidence the paper that its settings follow says that an image shows a concept; None for no paper's."""
        return None

    def instrument(self) -> dict[str, str]:
        """What a record should say of it beside its name and settings: weights, release, preprocessing."""
        return {}

    def identity(self) -> str:
        """What tells this judge from a retrained one; empty if it never changes."""
        return ""

    def valid(self, images: UInt8[Tensor, "b H W 3"]) -> Bool[Tensor, "b"] | None:
        """Whether each image is a picture at all; None from a judge that cannot tell."""
        return None

    def label_ids(self, concept: str) -> list[int]:
        """Indices of the labels that mean ``concept``.

        Raises:
            ExpungeError: if the judge does not know it, with the nearest label it does.
        """
        wanted = concept.lower()
        ids = [i for i, label in enumerate(self.labels) if label.lower() == wanted]
        if not ids:
            raise unknown(f"concept for judge '{self.name}':", concept, self.labels)
        return ids
