"""An eraser: a frozen dataclass of settings that knows how to make an edit."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept
from expunge.core.edit import Edit
from expunge.core.query import Query


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """What an eraser is asked to do."""

    targets: Sequence[Concept]
    retain: Sequence[str] = ()
    """Words of concepts that should stay."""
    images: Mapping[str, Path] = field(default_factory=dict)
    """Folders of images, one for each role the eraser named in `Eraser.needs`."""
    seed: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class Step:
    """One update of an eraser's loop; a closed form yields one."""

    index: int
    edit: Edit
    """The edit so far."""
    losses: Mapping[str, float] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """What resuming needs, bit for bit."""


class Eraser(ABC):
    """A method. Subclasses are frozen keyword-only dataclasses; their fields are its settings, with the paper's defaults.

    A subclass is final and alone in its module, whose name is the method's name.
    """

    paper: ClassVar[Paper]

    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[Query]]:
        """Images it wants, as queries by role; the caller makes them once or takes the user's folder."""
        return {}

    @abstractmethod
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        """Work on ``task``, yielding after every update; the backbone is left as it was found."""


def settings_of(plug_in: Any) -> dict[str, Any]:
    """The fields of an eraser or a metric as JSON."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(plug_in).items()}
