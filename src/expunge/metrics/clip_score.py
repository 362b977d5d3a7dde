"""CLIP score: how well images go with their prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from expunge.core.catalog import Paper
from expunge.core.metric import Measurement, Metric, average, grouped
from expunge.core.query import Shot
from expunge.pretrained import clip as pretrained


@final
@dataclass(frozen=True, kw_only=True)
class ClipScore(Metric):
    r"""Agreement of images with their prompts, :math:`\max(100 \cos(E_I, E_T), 0)`, averaged over images.

    methods.md C4. ``clip_erased`` is of targets (lower is better), ``clip_kept`` of retained concepts and of prompts that ask
    for nothing in particular (higher is better).
    Deviations: torchmetrics takes the maximum of the mean and 0, not of each image's score and 0; and it cuts long prompts
    with their end mark, here they keep it. On the testbed the towers are its own: ``clip_testbed_…``, of another scale.
    """

    paper: ClassVar[Paper] = Paper(
        "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", "Hessel et al.", 2021, "2104.08718"
    )
    higher_is_better: ClassVar[bool] = True
    meanings: ClassVar[Mapping[str, str]] = {
        "clip_erased": "Agreement of images with the texts that ask for the target. Lower: more is removed.",
        "clip_kept": "Agreement of other images with their texts. Higher: more is kept.",
    }
    headline: ClassVar[Mapping[str, Sequence[str]]] = {"any": ("clip*",)}
    model: str = "testbed"
    """Whose CLIP: `testbed`, a hub id (the papers': openai/clip-vit-base-patch32, or -large-patch14), or a folder."""

    @override
    def identity(self) -> str:
        return pretrained.identity(self.model)

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        clip = pretrained.clip(self.model)
        groups = grouped(shots, targets, retain).named("clip_testbed" if self.model == "testbed" else "clip")
        return [
            average(name, some, clip.scores(some, [s.prompt for s in some]), clip.instrument, unit="100 cos")
            for name, some in groups.items()
        ]
