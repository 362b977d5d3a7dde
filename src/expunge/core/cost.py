"""What a run cost, in numbers that do not depend on the machine."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Cost:
    """Evaluations of the denoiser, counted per image row."""

    forward: int = 0
    """Rows evaluated without gradient."""
    trained: int = 0
    """Rows evaluated forward and backward."""

    @property
    def equivalents(self) -> int:
        """Forward-equivalents: a forward and backward counts as 3 (methods.md 0.4)."""
        return self.forward + 3 * self.trained

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(forward=self.forward + other.forward, trained=self.trained + other.trained)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(forward=self.forward - other.forward, trained=self.trained - other.trained)


def predictions(distilled: bool, guidance: float, true_cfg: float = 1.0) -> int:
    """Predictions in a step of sampling: a pair where ``guidance`` is above 1, or a ``distilled`` model's ``true_cfg`` is."""
    return 2 if (true_cfg if distilled else guidance) > 1 else 1
