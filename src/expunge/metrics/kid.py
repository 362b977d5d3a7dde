"""Kernel inception distance: how far a set of images is from another, without a bias by its size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from typing_extensions import override

from expunge.core.catalog import Paper
from expunge.core.errors import ExpungeError
from expunge.core.metric import Measurement, Metric, grouped, together
from expunge.core.query import Shot
from expunge.core.record import Interval
from expunge.maths.distributions import mmd_of
from expunge.pretrained import weights as stored
from expunge.pretrained.features import compared


@final
@dataclass(frozen=True, kw_only=True)
class KID(Metric):
    """Squared maximum mean discrepancy of the features of kept images and of a reference, x 1000; lower is better.

    Binkowski et al., Eq. 4, with their cubic kernel. Images and reference are those of `fid`. Unbiased, so it may fall below
    0 where the sets agree, and smaller sets widen its interval only. The interval holds the reference fixed: a jackknife.
    Deviations: one estimate over all images in the place of a mean over random subsets of 1,000; scaling as in `fid`. On the
    testbed the features are of a network of its own: ``kid_testbed``, whose numbers are not KID's.
    """

    paper: ClassVar[Paper] = Paper("Demystifying MMD GANs", "Binkowski et al.", 2018, "1801.01401")
    about: ClassVar[Literal["targets", "kept", "either"]] = "kept"
    higher_is_better: ClassVar[bool] = False
    paired: ClassVar[bool] = True
    headline: ClassVar[Mapping[str, Sequence[str]]] = {"any": ("kid*",)}
    any_reference: ClassVar[bool] = True
    network: str = "testbed"
    """Whose features: `testbed`, or `inception` for KID itself."""
    weights: str = "official"
    """Inception's weights: `official` (from torch-fidelity's address), or the path of a file."""
    minimum: int = 2_000
    """Fewer images than this, or a smaller reference, are refused."""

    def __post_init__(self) -> None:
        if self.minimum < 3:
            raise ExpungeError(f"kid's minimum is {self.minimum}: expected 3 or more")

    @override
    def identity(self) -> str:
        return stored.identity(self.weights) if self.network == "inception" else ""

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        kept = grouped(shots, targets, retain).kept
        others = grouped(reference, targets, retain, "of the reference").kept
        sets = compared("kid", self.network, self.weights, self.minimum, kept, others)
        interval = mmd_of(sets.ours, sets.theirs)
        thousandfold = Interval(*(1000 * part for part in interval))
        return [together(sets.name, sets.kept, thousandfold, "x 1e-3", sets.instrument)]
