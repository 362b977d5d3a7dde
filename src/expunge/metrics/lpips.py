"""LPIPS: how far images moved from the original model's of the same prompt and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from expunge.core.catalog import Paper
from expunge.core.metric import Measurement, Metric, average, grouped, paired
from expunge.core.query import Shot
from expunge.pretrained import weights as stored
from expunge.pretrained.perceptual import Resolution, perceptual


@final
@dataclass(frozen=True, kw_only=True)
class LPIPS(Metric):
    """Learned perceptual distance of images of one prompt and seed, before and after the edit; in percent.

    Zhang et al., Eq. 1, in AlexNet, version 0.1; methods.md C5. ``lpips_erased`` is of targets (higher is better),
    ``lpips_kept`` of retained concepts and of prompts that ask for nothing in particular (lower is better). 79 % is the
    papers' 0.79. `prior-distance` is the stand-in on the testbed, whose images this network was not made for.
    Deviations: none known. How ESD's early script scaled images to 64 pixels is not known; here bilinear, antialiased.
    """

    paper: ClassVar[Paper] = Paper(
        "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", "Zhang et al.", 2018, "1801.03924"
    )
    higher_is_better: ClassVar[bool] = False
    paired: ClassVar[bool] = True
    headline: ClassVar[Mapping[str, Sequence[str]]] = {"any": ("lpips*",)}
    weights: str = "official"
    """AlexNet's weights: `official` (torchvision's address), the path of a file, or `random` (for trying things out)."""
    resolution: Resolution = "full"
    """`full`, or `64` as in ESD's early script."""

    @override
    def identity(self) -> str:
        return stored.identity(self.weights)

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        net = perceptual("alex", self.weights, self.resolution)
        numbers: list[Measurement] = []
        for name, group in grouped(shots, targets, retain).named("lpips").items():
            pairs = paired(group, reference)
            numbers.append(average(name, [p.shot for p in pairs], net.distances(pairs), net.instrument))
        return numbers
