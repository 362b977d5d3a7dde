"""Prior preservation: how much an edit left alone what it should not touch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

from typing_extensions import override

from expunge.core.catalog import Paper
from expunge.core.eraser import LATER
from expunge.core.errors import ExpungeError
from expunge.core.metric import Measurement, Metric, average, deviation, grouped, paired
from expunge.core.query import Shot
from expunge.pretrained import weights as stored
from expunge.pretrained.perceptual import Resolution, perceptual


@final
@dataclass(frozen=True, kw_only=True)
class PriorPreservation(Metric):
    """1 - LPIPS of kept images of one prompt and seed, before and after the edit; in percent, 100 is untouched.

    DUO's section 5; methods.md C7: the x of its Pareto plot, whose y is `dsr`. Of retained concepts, and of prompts that ask
    for nothing in particular (COCO captions). Plans tell it of the original against itself on other seeds: what is left where
    nothing but the prompt is the same, the low end of the scale.
    Deviations: on the testbed the distance is that of `prior-distance`: ``prior_preservation_testbed``, whose numbers are not
    the paper's kind.
    """

    paper: ClassVar[Paper] = Paper(
        "Direct Unlearning Optimization for Robust and Safe Text-to-Image Models", "Park et al.", 2024, "2407.21035"
    )
    about: ClassVar[Literal["targets", "kept", "either"]] = "kept"
    higher_is_better: ClassVar[bool] = True
    paired: ClassVar[bool] = True
    headline: ClassVar[Mapping[str, Sequence[str]]] = {"any": ("prior_*",)}
    network: str = "testbed"
    """Whose distance: `testbed`, or `alex` for LPIPS."""
    weights: str = "official"
    """AlexNet's weights: `official` (torchvision's address), the path of a file, or `random` (for trying things out)."""
    resolution: Resolution = "full"
    """Of LPIPS: `full`, or `64`."""
    spread: bool = field(default=False, metadata=LATER)
    """Whether the standard deviation over images stands beside the mean (``…_sd``), as in DUO's Table 3."""

    @override
    def identity(self) -> str:
        return stored.identity(self.weights) if self.network == "alex" else ""

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        kept = grouped(shots, targets, retain).kept
        if not kept:
            raise ExpungeError("prior-preservation of targets alone: expected images of something to keep")
        net, pairs = perceptual(self.network, self.weights, self.resolution), paired(kept, reference)
        values = [1 - distance for distance in net.distances(pairs)]
        name = "prior_preservation" if self.network == "alex" else f"prior_preservation_{self.network}"
        shown = [p.shot for p in pairs]
        numbers = [average(name, shown, values, net.instrument)]
        return [*numbers, deviation(f"{name}_sd", shown, values, net.instrument)] if self.spread else numbers
