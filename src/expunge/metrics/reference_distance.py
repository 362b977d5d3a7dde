"""Distance from a reference model's images: how far an erasure is from a model that never saw the concept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from typing_extensions import override

from expunge.core.catalog import Paper
from expunge.core.metric import Measurement, Metric, average, grouped, paired
from expunge.core.query import Shot
from expunge.pretrained import weights as stored
from expunge.pretrained.perceptual import Resolution, perceptual


@final
@dataclass(frozen=True, kw_only=True)
class ReferenceDistance(Metric):
    """Distance of features between an image and that of another model, the reference, of the same prompt and seed.

    The reference is a model that was trained without the concept: what perfect erasing would give. So both numbers are better
    when they are lower: ``reference_distance_erased`` of targets and ``reference_distance_kept`` of all else, in percent. Plans
    name the reference as ``reference``; the original's row says how far one has to go, and the reference's own row, which is
    told on other seeds, how far apart two images of one prompt are anyway. Two trainings never give the same images: what a
    second model without the concept would have is the least that an erasure can hope for, and is not measured by this.
    Deviations: the idea alone is the paper's (which could not be read here): it compares the two models' likelihoods of
    samples, in both directions. The distance is that of `prior-distance` on the testbed, or LPIPS's.
    """

    paper: ClassVar[Paper] = Paper(
        "Reference-Specific Unlearning Metrics Can Hide the Truth: A Reality Check", "Cho et al.", 2025, "2510.12981"
    )
    higher_is_better: ClassVar[bool] = False
    paired: ClassVar[bool] = True
    against: ClassVar[Literal["original", "reference"]] = "reference"
    meanings: ClassVar[Mapping[str, str]] = {
        "reference_distance_erased": "How far images of targets are from those of a model that never saw them, on equal seeds.",
        "reference_distance_kept": "How far other images are from those of a model that never saw the targets, on equal seeds.",
    }
    headline: ClassVar[Mapping[str, Sequence[str]]] = {"any": ("reference_distance*",)}
    network: str = "testbed"
    """Whose distance: `testbed`, or `alex` for LPIPS."""
    weights: str = "official"
    """AlexNet's weights: `official` (torchvision's address), the path of a file, or `random` (for trying things out)."""
    resolution: Resolution = "full"
    """Of LPIPS: `full`, or `64`."""

    @override
    def identity(self) -> str:
        return stored.identity(self.weights) if self.network == "alex" else ""

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        net = perceptual(self.network, self.weights, self.resolution)
        numbers: list[Measurement] = []
        for name, group in grouped(shots, targets, retain).named("reference_distance").items():
            pairs = paired(group, reference)
            numbers.append(average(name, [p.shot for p in pairs], net.distances(pairs), net.instrument))
        return numbers
