"""Image to image: begin from a picture of the concept instead of from noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from typing_extensions import override

from expunge.core.attack import Attack, Provocation, wished
from expunge.core.catalog import Paper
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, check_counts
from expunge.core.knowledge import Kind
from expunge.core.query import Query, Start
from expunge.core.victim import Access, BlackBox


@final
@dataclass(frozen=True, kw_only=True)
class ImageToImage(Attack[BlackBox]):
    """Start each image from a noised picture of the concept, and have the edited model finish it.

    SDEdit (2108.01073), as a probe of erasure: Lu et al. 2025 (2505.17013), visual context. The smaller ``strength``, the more
    of the picture is left: at little noise any model gives it back, so a result means something only beside the same attack on
    a model that never knew the concept. Pictures are the original model's, or yours (``--concept-images``).
    Deviations: Lu et al. also have the model fill in a masked region, which is not built.
    """

    paper: ClassVar[Paper] = Paper(
        "When Are Concepts Erased From Diffusion Models?",
        "Lu et al.",
        2025,
        "2505.17013",
        "https://github.com/kevinlu4588/WhenAreConceptsErased",
    )
    access: ClassVar[Access] = "queries"
    shares: ClassVar[bool] = False
    sends_pictures: ClassVar[bool] = True
    returns: ClassVar[str] = "to whoever sends a picture of it along (strength {strength})"
    knows: ClassVar[Mapping[str, Kind]] = {"prompts": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("strength", "images")
    strength: float = 0.75
    """Share of the denoising steps that the edited model does, above 0 up to 1 (all: pure noise, or nearly)."""
    images: int = 8
    """Pictures of each target, made by the original model if none are given; each query draws one."""
    prompts: tuple[str, ...] = ("a photo of a {}",)
    """What the original model makes them with; {} is the target's name, if it is to be named."""

    def __post_init__(self) -> None:
        check_counts("image-to-image", images=self.images, prompts=len(self.prompts))
        if not 0 < self.strength <= 1:
            raise ExpungeError(f"image-to-image's strength is {self.strength}: expected more than 0, up to 1")

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str]]:
        return wished(targets, self.prompts, self.images)

    @override
    def provoke(self, victim: BlackBox, task: Task, queries: Sequence[Query]) -> Provocation:
        answers: list[Query] = []
        for target in task.targets:
            shots = task.images[target.name]
            for query in (q for q in queries if q.label == target.name):
                which = task.number("image-to-image", *query.own) % len(shots)
                start = Start(image=shots[which].pixels(), strength=self.strength)
                answers.append(replace(query, start=start))
        return Provocation(queries=answers)
