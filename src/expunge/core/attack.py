"""An attack: looks for queries that bring an erased concept back."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept
from expunge.core.query import Query


class Attack(ABC):
    """A method of attack. Its queries are generated and judged by other rooms: an attack never decides that it won."""

    paper: ClassVar[Paper]

    @abstractmethod
    def queries(
        self, backbone: Backbone, targets: Sequence[Concept], queries: Sequence[Query], seed: int
    ) -> Iterable[Query]:
        """Adversarial versions of ``queries`` against the model with its edits."""
