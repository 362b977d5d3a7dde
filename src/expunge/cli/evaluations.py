"""How many evaluations of a model a command foresees, and has made."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.cost import Cost
    from expunge.core.eraser import Wish


class Evaluations(NamedTuple):
    """How far work is that evaluates a model, as `Reporting.progress` takes it."""

    total: int
    unit: str
    counted: Callable[[], int]


def evaluations(
    backbone: "Backbone",
    foreseen: "Cost | None" = None,
    needs: "Mapping[str, Sequence[Wish]] | None" = None,
    given: Mapping[str, Path] | None = None,
) -> Evaluations:
    """Evaluations from now on, of those ``foreseen`` and of the images that are not ``given`` and will be made."""
    from expunge.settings import presets

    before, image = backbone.cost.equivalents, presets.image_evaluations(backbone)
    images = sum(image * len(wanted) for role, wanted in (needs or {}).items() if role not in (given or {}))
    total = 0 if foreseen is None else foreseen.equivalents + images
    return Evaluations(total, "forward-equivalents", lambda: backbone.cost.equivalents - before)
