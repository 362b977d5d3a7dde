"""Distance from the original model's images: how far an edit moved what it should have left alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from expunge.core.catalog import Paper
from expunge.core.errors import unknown
from expunge.core.metric import Measurement, Metric, average, paired
from expunge.core.query import Shot
from expunge.pretrained.perceptual import perceptual


@final
@dataclass(frozen=True, kw_only=True)
class PriorDistance(Metric):
    r"""Distance of features between images of one prompt and seed, before and after: 0 is the same image.

    .. math:: d(x, y) = \frac1L \sum_l \frac1{H_l W_l} \sum_{h,w} \big(1 - \hat u_{hw}^l \cdot \hat v_{hw}^l\big)

    of the unit feature vectors of both images at each place of each layer of a network. ``prior_distance`` is of retained
    images (lower is better), ``target_distance`` of the targets' (higher is better); in percent. Plans tell it of the original
    on other seeds: how far two images of one prompt are apart anyway.
    Deviations: LPIPS (1801.03924, Eq. 1) in a network of the testbed's own, with equal weights in the place of learned ones and
    a mean over layers in the place of a sum: a stand-in under its own name, whose numbers are not LPIPS's.
    """

    paper: ClassVar[Paper] = Paper(
        "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", "Zhang et al.", 2018, "1801.03924"
    )
    higher_is_better: ClassVar[bool] = False
    paired: ClassVar[bool] = True
    meanings: ClassVar[Mapping[str, str]] = {
        "prior_distance": "How far images moved from the original model's on equal seeds."
    }
    headline: ClassVar[Mapping[str, Sequence[str]]] = {"any": ("prior_*",)}
    network: str = "testbed"
    """Whose features: the testbed's feature net, which neither judges nor was trained with the model."""

    def __post_init__(self) -> None:
        if self.network != "testbed":
            raise unknown("network of prior-distance", self.network, ["testbed"])

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        pairs = paired([s for s in shots if s.label in {*targets, *retain}], reference)
        net = perceptual(self.network)
        values = net.distances(pairs)
        numbers: list[Measurement] = []
        for name, words in (("target_distance", set(targets)), ("prior_distance", set(retain))):
            rows = [i for i, (shot, _) in enumerate(pairs) if shot.label in words]
            if rows:
                numbers.append(average(name, [pairs[i].shot for i in rows], [values[i] for i in rows], net.instrument))
        return numbers
