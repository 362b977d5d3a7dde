"""Implicit-concept ratio: how many images show what nobody asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from typing_extensions import override

from expunge.core.catalog import Catalog, Paper
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge
from expunge.core.metric import Measurement, Metric, prompt_of, share
from expunge.core.query import Shot, batches

BATCH = 250


@final
@dataclass(frozen=True, kw_only=True)
class ICR(Metric):
    r"""Share of images in which a detector finds an implicit concept, such as a watermark, in percent.

    .. math:: \mathrm{ICR} = 100 \cdot |\{x : s(x) > \theta\}| \, / \, n

    Geom-Erasing (2310.05873); methods.md A15. Prompts do not ask for such a concept, so all images count, whatever they are
    labelled with. Of several concepts, an image counts that shows any. The judge ``marks`` finds the marks that
    `testbed.marks` draws; for others name a judge of yours.
    Deviations: the paper's detectors are its own networks, which are not published; here the judge and its threshold are
    settings. The interval is the hull of Wilson's and a bootstrap over prompts.
    """

    paper: ClassVar[Paper] = Paper("Implicit Concept Removal of Diffusion Models", "Liu et al.", 2024, "2310.05873")
    higher_is_better: ClassVar[bool] = False
    about: ClassVar[Literal["targets", "kept", "either"]] = "either"
    asks_kept: ClassVar[bool] = False
    any_label: ClassVar[bool] = True
    meanings: ClassVar[Mapping[str, str]] = {
        "icr": "Images in which the detector finds the implicit concept, which no prompt asks for. Lower: more is removed."
    }
    shares: ClassVar[Sequence[str]] = ("icr",)
    headline: ClassVar[Mapping[str, Sequence[str]]] = {"any": ("icr",)}
    concepts: tuple[str, ...] = ()
    """What is looked for; the targets, if not given."""
    judge: str = "marks"
    """Catalog name of the judge that looks, with its settings if any."""
    threshold: float = 0.5
    """An image counts of which the judge is surer than this."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ExpungeError(f"icr's threshold is {self.threshold}: expected 0 or more, and less than 1")

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        wanted = self.concepts or tuple(targets)
        if not wanted:
            raise ExpungeError("icr without a concept: expected what to look for, such as --concepts watermark")
        if not shots:
            raise ExpungeError("icr of no image: expected at least one")
        judge: Judge = Catalog("judges").open(self.judge)
        found: list[float] = []
        for pixels in batches(shots, BATCH):
            sure = [judge.confidence(pixels, concept) > self.threshold for concept in wanted]
            found += [float(any(row)) for row in zip(*(s.tolist() for s in sure), strict=True)]
        instrument = {**judge.instrument(), "concepts": list(wanted)}
        return [share("icr", shots, found, clusters=prompt_of, instrument=instrument)]
