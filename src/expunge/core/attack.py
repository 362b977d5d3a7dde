"""An attack: looks for queries that bring an erased concept back."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.eraser import Redrawn, Task
from expunge.core.query import Query

Access = Literal["white box", "text encoder", "queries"]
"""What an attacker must hold: the edited model, the text encoder alone, or nothing but a way to ask for images."""


class Attack(ABC):
    """A method of attack. Its queries are generated and judged by other rooms: an attack never decides that it won.

    Subclasses are frozen keyword-only dataclasses; their fields are its settings, with the paper's defaults.
    """

    paper: ClassVar[Paper]
    access: ClassVar[Access]
    version: ClassVar[int] = 1
    """Raised when the same settings begin to give other queries, so that stored ones are not taken for them."""

    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str | Redrawn]]:
        """Images it wants, by role: a prompt, or more, for each; the caller makes them with the original model."""
        return {}

    @abstractmethod
    def queries(self, backbone: Backbone, task: Task, queries: Sequence[Query]) -> Iterable[Query]:
        """Adversarial versions of those ``queries`` that ask for a target of ``task`` (by their label).

        They are made against the model with the edits that are attached to it, which is left as it was.
        """

    def cost(self, targets: int, queries: int) -> Cost:
        """Evaluations of the denoiser that it will take, in expectation: its budget, beside the images it wants."""
        return Cost()
