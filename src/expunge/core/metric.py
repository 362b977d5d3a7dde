"""A metric: one call over stored images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from expunge.core.catalog import Paper
from expunge.core.query import Shot
from expunge.core.record import Interval


@final
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number, its interval and the values behind it."""

    metric: str
    interval: Interval
    unit: str
    n: int
    n_seeds: int
    per_image: Sequence[float]
    labels: Sequence[str]
    """The concept that each of the values is of."""


class Metric(ABC):
    """Measures stored images. Subclasses are frozen keyword-only dataclasses of settings."""

    paper: ClassVar[Paper]
    higher_is_better: ClassVar[bool]
    paired: ClassVar[bool] = False
    """Whether images are compared with the original model's, of the same prompts."""
    version: ClassVar[int] = 1
    """Raised when the same images begin to give other numbers."""

    @abstractmethod
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        """Measure images whose labels are among ``targets`` or ``retain``; ``reference`` is for a metric that is ``paired``.

        Raises:
            ExpungeError: if the judge does not know a concept, or there is no image to measure.
        """
