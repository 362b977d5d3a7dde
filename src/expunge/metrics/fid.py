"""Fréchet inception distance: how far a set of images is from another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from typing_extensions import override

from expunge.core.catalog import Paper
from expunge.core.errors import ExpungeError
from expunge.core.metric import Measurement, Metric, grouped, together
from expunge.core.query import Shot
from expunge.maths.distributions import frechet_of
from expunge.pretrained import weights as stored
from expunge.pretrained.features import compared


@final
@dataclass(frozen=True, kw_only=True)
class FID(Metric):
    """Fréchet distance of Gaussians fitted to the features of kept images and of a reference; lower is better.

    Heusel et al., Eq. 6; methods.md C3. Of retained concepts, and of prompts that ask for nothing in particular (COCO
    captions). The reference is a folder of photographs, with or without prompts (COCO's for the papers' tables), or the
    original's images; plans take the latter on other seeds, for the original's own row too, which is then the floor.
    The interval holds the reference fixed: a bootstrap's standard deviation around the value, since resampled sets are farther.
    Deviations: images are scaled by torchmetrics (bilinear, antialiased); TensorFlow's scaling and clean-fid's give other
    numbers. On the testbed the features are of a network of its own: ``fid_testbed``, whose numbers are not FID's.
    """

    paper: ClassVar[Paper] = Paper(
        "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
        "Heusel et al.",
        2017,
        "1706.08500",
    )
    about: ClassVar[Literal["targets", "kept", "either"]] = "kept"
    higher_is_better: ClassVar[bool] = False
    paired: ClassVar[bool] = True
    headline: ClassVar[Mapping[str, Sequence[str]]] = {"any": ("fid*",)}
    any_reference: ClassVar[bool] = True
    network: str = "testbed"
    """Whose features: `testbed`, or `inception` for FID itself."""
    weights: str = "official"
    """Inception's weights: `official` (from torch-fidelity's address), or the path of a file."""
    minimum: int = 2_000
    """Fewer images than this, or a smaller reference, are refused: the distance grows as sets shrink."""
    resamples: int = 20
    """Bootstrap draws behind the interval."""

    def __post_init__(self) -> None:
        if self.minimum < 2 or self.resamples < 2:
            raise ExpungeError(f"fid's minimum {self.minimum} and resamples {self.resamples}: expected 2 or more")

    @override
    def identity(self) -> str:
        return stored.identity(self.weights) if self.network == "inception" else ""

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        kept = grouped(shots, targets, retain).kept
        others = grouped(reference, targets, retain, "of the reference").kept
        sets = compared("fid", self.network, self.weights, self.minimum, kept, others)
        interval = frechet_of(sets.ours, sets.theirs, self.resamples)
        return [together(sets.name, sets.kept, interval, "", sets.instrument)]
