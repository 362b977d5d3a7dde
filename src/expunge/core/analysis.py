"""An analysis: looks into a model, or along an erasure, and gives numbers and figures."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.edit import Edit
from expunge.core.eraser import Eraser, Task
from expunge.core.figure import Figure
from expunge.core.guidance import Key
from expunge.core.metric import Measurement
from expunge.core.query import Query, queries
from expunge.core.record import in_percent, mean_of


@final
@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an analysis found."""

    measurements: Sequence[Measurement]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """By the name of their file."""


@final
@dataclass(frozen=True, kw_only=True)
class Training:
    """An erasure that an analysis runs once more, to look at it on the way."""

    eraser: Eraser
    task: Task


@final
@dataclass(frozen=True, kw_only=True)
class Study:
    """What an analysis looks at: a model's edits, the words in question, and how images of them are made."""

    targets: Sequence[str]
    """Words that are erased."""
    retain: Sequence[str]
    """Words that should have stayed."""
    prompt: Callable[[str], str]
    """The prompt that asks the model for a word."""
    guidance: float
    steps: int
    batch: int
    """Images at a time."""
    seed: int = 0
    """First seed of the images; the same for every word and every edit."""
    edits: Sequence[Edit] = ()
    key: Key | None = None
    training: Training | None = None
    true_cfg: float = 1.0
    """Scale of a distilled model's pair of predictions; 1 is none."""

    def queries(self, words: Sequence[str], count: int) -> list[Query]:
        """``count`` queries for each word, labelled with it."""
        asked = [(self.prompt(w), w) for w in words]
        return queries(asked, count, self.seed, self.guidance, self.steps, true_cfg=self.true_cfg)

    def batches(self, asked: Sequence[Query]) -> list[Sequence[Query]]:
        """The same queries, so many at a time as the model takes."""
        return [asked[start : start + self.batch] for start in range(0, len(asked), self.batch)]

    def images(self, backbone: Backbone, asked: Sequence[Query]) -> UInt8[Tensor, "b H W 3"]:
        """An image for each query, by the model as it stands."""
        return torch.cat([backbone.generate(part).pixels for part in self.batches(asked)])

    def states(self) -> dict[str, list[Edit]]:
        """The edits to attach for ``original``, ``edited`` and ``recovered``, as far as there are any."""
        states: dict[str, list[Edit]] = {"original": []}
        if self.edits:
            states["edited"] = list(self.edits)
        if self.key is not None:
            states["recovered"] = [*self.edits, self.key]
        return states


Needs = Literal["model", "edit", "key", "training"]


class Analysis(ABC):
    """A way to look at what an edit did. Subclasses are frozen keyword-only dataclasses of settings."""

    paper: ClassVar[Paper]
    needs: ClassVar[Needs] = "edit"
    """The least it can look at: a model, an edit, an edit with its key, or an erasure from its start."""
    version: ClassVar[int] = 1
    """Raised when the same study begins to give other numbers."""

    @abstractmethod
    def findings(self, backbone: Backbone, study: Study) -> Findings:
        """Look at ``study``; the backbone is left as it was found.

        Raises:
            ExpungeError: if the study or the model lacks what is looked at.
        """

    @abstractmethod
    def images(self, targets: int, retain: int, eraser: Eraser | None) -> int:
        """About how many images it will make, of so many words and by an edit of ``eraser`` (None: the model alone)."""


def averaged(metric: str, values: Sequence[tuple[str, float]], n_seeds: int, unit: str = "%") -> Measurement:
    """The mean of fractions in percent; words are the clusters of its interval, or single values where there is one word."""
    return Measurement(
        metric=metric,
        interval=in_percent(mean_of({0: {"": values}})),
        unit=unit,
        n=len(values),
        n_seeds=n_seeds,
        per_image=[v for _, v in values],
        labels=[w for w, _ in values],
    )
