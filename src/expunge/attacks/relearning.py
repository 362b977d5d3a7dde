"""Relearning: a small LoRA, trained on a few images of the concept, on top of the edited model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from typing_extensions import override

from expunge.core.attack import Attack, Provocation, wished
from expunge.core.catalog import Paper
from expunge.core.concept import Concept, phrases
from expunge.core.cost import Cost
from expunge.core.edit import Edit
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.guidance import guidances
from expunge.core.knowledge import Kind
from expunge.core.query import Query, Shot
from expunge.core.victim import Access, WhiteBox
from expunge.maths.training import Learned, mse, thin


@final
@dataclass(frozen=True, kw_only=True)
class Relearning(Attack[WhiteBox]):
    r"""Fine-tune what was erased back in, as anybody who holds the weights can, and ask for it by its name.

    .. math:: \min_\psi \mathbb{E} \big\| \epsilon - \epsilon_{\theta', \psi}(x_t, t, c) \big\|^2

    Suriyakumar et al. 2024 (2410.08074) show that concepts come back under fine-tuning, even on other images. This attack
    trains on the concept itself: images of each target that the original model made (or yours, ``--concept-images``), with
    the target's own words, by a LoRA :math:`\psi` beside the attention. The queries stay as they are; the LoRA is an edit on
    top. How much of that is remembered and not new, the same attack on a model that never knew the concept tells.
    Deviations: their fine-tuning changes all weights, and its images are of other things.
    """

    paper: ClassVar[Paper] = Paper(
        "Unstable Unlearning: The Hidden Risk of Concept Resurgence in Diffusion Models",
        "Suriyakumar et al.",
        2024,
        "2410.08074",
    )
    access: ClassVar[Access] = "white box"
    at_once: ClassVar[bool] = True
    spends: ClassVar[str] = "iterations"
    returns: ClassVar[str] = "with the weights in {iterations} updates on {images} images"
    knows: ClassVar[Mapping[str, Kind]] = {"templates": "phrases", "prompts": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("images", "captions")
    images: int = 8
    """Images of each target, made by the original model if none are given."""
    prompts: tuple[str, ...] = ("a photo of a {}",)
    """What the original model makes them with; {} is the target's name, if it is to be named."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Phrases that a target is put into while it is learned; each image draws one."""
    captions: Literal["templates", "own"] = "templates"
    """What an image is learned with: one of these, or the prompt that it was made with (a class has no word of its own)."""
    layers: Literal["attn", "selfattn", "transformer"] = "attn"
    """Layers that the LoRA stands beside."""
    rank: int = 4
    """Its rank."""
    alpha: float = 4.0
    """Its scale, times the rank."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    iterations: int = 500
    """Updates."""
    batch: int = 1
    """Images an update."""

    def __post_init__(self) -> None:
        counts = ("images", "rank", "iterations", "batch")
        check_counts("relearning", **{name: getattr(self, name) for name in counts}, prompts=len(self.prompts))
        check_positive("relearning", lr=self.lr, alpha=self.alpha)
        phrases(self.templates, "")

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str]]:
        return wished(targets, self.prompts, self.images)

    @override
    def fits(self, edits: Sequence[Edit]) -> None:
        at_inference = next(iter(guidances(edits)), None)
        if at_inference is not None:
            raise ExpungeError(
                f"relearning against edit {at_inference.id}, which acts at generation and leaves the weights: expected edits "
                "of weights or adapters (whoever holds the weights leaves that one out)"
            )

    @override
    def provoke(self, victim: WhiteBox, task: Task, queries: Sequence[Query]) -> Provocation:
        backbone, names = victim.backbone, [target.name for target in task.targets]
        self.fits(backbone.edits)
        with torch.no_grad():
            shots = [(shot, name) for name in names for shot in task.images[name]]
            latents = torch.cat([backbone.encode_image(shot.pixels()[None]) for shot, _ in shots])
        start = thin(backbone, backbone.layers(self.layers), self.rank, task.generator("relearning"), "gaussian")
        student, scale = Learned(start, self.lr, "adamw"), self.alpha / self.rank
        for index in range(self.iterations):
            generator = task.generator("relearning", index)
            rows = torch.randint(0, len(latents), (self.batch,), generator=generator)
            ways = torch.randint(0, len(self.templates), (self.batch,), generator=generator).tolist()
            x0 = latents[rows.to(latents.device)]
            noise = torch.randn(x0.shape, generator=generator).to(x0)
            t = torch.randint(0, backbone.training_timesteps, (self.batch,), generator=generator).to(x0.device)
            words = [self._caption(shots[row], way) for way, row in zip(ways, rows.tolist(), strict=True)]
            with torch.no_grad():
                cond, x = backbone.encode(words), backbone.add_noise(x0, noise, t)
            with backbone.adapted(student.tensors(), scale):
                student.descend(mse(backbone.predict(x, t, cond), backbone.truth(x0, noise, t)))
        asked = [query for query in queries if query.label in names]
        return Provocation(queries=asked, edit=backbone.adapter_of(student.values(), scale))

    def _caption(self, image: tuple[Shot, str], way: int) -> str:
        """What an image, with the target that it is of, is learned with; ``way`` is the template that it drew."""
        shot, name = image
        own = shot.prompt if self.captions == "own" else ""
        return own or self.templates[way].replace("{}", name)

    @override
    def cost(self, targets: int, queries: int) -> Cost:
        return Cost(trained=self.iterations * self.batch)
