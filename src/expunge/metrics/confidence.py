"""Confidence: how sure the judge is that each image shows what was erased."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from typing_extensions import override

from expunge.core.catalog import Catalog, Paper
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge
from expunge.core.metric import Measurement, Metric, average
from expunge.core.query import Shot, batches

BATCH = 250


@final
@dataclass(frozen=True, kw_only=True)
class Confidence(Metric):
    """Mean confidence, in percent, with which the judge sees its target in each image labelled with one.

    No paper's: it gives an order to images, so that a report can show first those in which most came back. Read shares from
    `esr-psr` or `dsr`. The interval is that of a mean over prompts, or over concepts if there are several.
    Deviations: none known.
    """

    paper: ClassVar[Paper] = Paper("A measure of this project", "expunge", 2026, "")
    about: ClassVar[Literal["targets", "kept", "either"]] = "targets"
    higher_is_better: ClassVar[bool] = False
    asks_kept: ClassVar[bool] = False
    meanings: ClassVar[Mapping[str, str]] = {
        "confidence": "How sure the judge is, on average, that an image shows its target. Lower: more is removed."
    }
    headline: ClassVar[Mapping[str, Sequence[str]]] = {}
    judge: str = "testbed"
    """Catalog name of the judge, with its settings if any: `testbed`, `nudenet`, `testbed:network=b`."""

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        judge: Judge = Catalog("judges").open(self.judge)
        judged: list[Shot] = []
        sure: list[float] = []
        for target in targets:
            mine = [s for s in shots if s.label == target]
            judged += mine
            for pixels in batches(mine, BATCH):
                sure += judge.confidence(pixels, target).tolist()
        if not judged:
            raise ExpungeError(f"no image is labelled with one of {list(targets)}: expected images of them")
        return [average("confidence", judged, sure, judge.instrument())]
