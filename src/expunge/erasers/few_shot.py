"""Few-shot erasing: a few steps away from a few images of the concept, in the text encoder alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import OBJECT_TEMPLATES, Concept, phrases
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.knowledge import Kind
from expunge.core.texts import warn_of_t5
from expunge.maths.training import Decay, Learned, mse, pace

GROUPS = {
    "mlp-last-attn": "text-mlp-last-attn",
    "mlp": "text-mlp",
    "attn": "text-attn",
    "last": "text-last",
    "all": "text-encoder",
}
"""The parameters of each choice, by the backbone's name for the group."""


class _Shown(NamedTuple):
    """The images of all targets, and which target each shows."""

    latents: Float[Tensor, "b c h w"]
    target: Int[Tensor, "b"]


@final
@dataclass(frozen=True, kw_only=True)
class FewShot(Eraser):
    r"""Make the text encoder worse at naming the concept: gradient ascent on a few images, in seconds.

    .. math:: \max_\phi \mathbb{E} \big\| \epsilon - \epsilon_\theta(x_t, t, \tau_\phi(\text{template of } c)) \big\|^2

    Fuchi and Takagi 2024 (2405.07288); methods.md A13. The UNet stays as it is; of the text encoder every feed-forward layer
    and the last layer's self-attention learn. What the concept becomes is not chosen: it moves to something near. Too many
    updates destroy everything, so the few of the defaults are the method. Ignores the retain list.
    Deviations: where no images are given the model makes them (the paper has photographs of the concept). The authors' released
    code means to freeze the other layers and does not (it sets ``require_grad``), so that it trains the whole text encoder, as
    ``group="all"`` does here; its default of epochs is 5, and without images it has ``batch`` latents, here ``shots``.
    """

    paper: ClassVar[Paper] = Paper(
        "Erasing Concepts from Text-to-Image Diffusion Models with Few-shot Unlearning",
        "Fuchi and Takagi",
        2024,
        "2405.07288",
        "https://github.com/fmp453/few-shot-erasing",
    )
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {"templates": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("source", "shots", "prompt")
    group: Literal["mlp-last-attn", "mlp", "attn", "last", "all"] = "mlp-last-attn"
    """What learns: the feed-forward layers with the last self-attention, without, all attention, the last layer, everything."""
    source: Literal["images", "uniform"] = "images"
    """What is noised: images of the target, or (the variant without images) uniform random latents."""
    shots: int = 4
    """Images of each target, made by the model if none are given."""
    prompt: str = "a photo of a {}"
    """What they are made with."""
    flip: bool = True
    """Mirror each image with probability a half, once."""
    templates: tuple[str, ...] = OBJECT_TEMPLATES
    """Phrases that targets are put into; each image draws one at each update."""
    lr: float = 1e-5
    """Learning rate of Adam."""
    betas: tuple[float, ...] = (0.9, 0.98)
    """Adam's averages."""
    eps: float = 1e-6
    """Adam's epsilon."""
    weight_decay: float = 1e-8
    """Adam's weight decay."""
    decay: Decay = "none"
    """How the learning rate falls."""
    epochs: int = 4
    """Times that every image is used."""
    batch: int = 2
    """Images an update."""

    def __post_init__(self) -> None:
        check_counts("few-shot", shots=self.shots, epochs=self.epochs, batch=self.batch)
        check_positive("few-shot", lr=self.lr, eps=self.eps)
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas) or not self.weight_decay >= 0:
            raise ExpungeError(
                f"few-shot's betas {self.betas} and weight_decay {self.weight_decay}: expected two numbers from 0 to 1, and no "
                "negative decay"
            )
        phrases((*self.templates, self.prompt), "")

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str]]:
        if self.source == "uniform":
            return {}
        return {t.name: [self.prompt.replace("{}", t.name)] * self.shots for t in targets}

    @override
    def check(self, backbone: Backbone) -> None:
        warn_of_t5(backbone, "few-shot")

    @override
    def stronger(self, times: float) -> "FewShot":
        return replace(self, epochs=counted(self.epochs, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        shown = self._shown(backbone, task)
        texts = [phrases(self.templates, t.name) for t in task.targets]
        options = {"betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        student = Learned(backbone.tensors(backbone.group(GROUPS[self.group])), self.lr, "adam", options)
        total = self.epochs * -(-len(shown.latents) // self.batch)
        first = 0
        if resume is not None:
            student.load("student", resume)
            first = int(resume["next"])
        for index, rows in self._batches(task, len(shown.latents)):
            if index < first:
                continue
            generator = task.generator("few-shot", index)
            x0 = shown.latents[rows]
            noise = torch.randn(x0.shape, generator=generator).to(x0)
            t = torch.randint(0, backbone.training_timesteps, (len(rows),), generator=generator).to(x0.device)
            ways = torch.randint(0, len(self.templates), (len(rows),), generator=generator).tolist()
            prompts = [texts[which][way] for which, way in zip(shown.target[rows].tolist(), ways, strict=True)]
            x = backbone.add_noise(x0, noise, t)
            with backbone.weights(student.tensors()):
                answer = backbone.predict(x, t, backbone.encode(prompts))
                ascent = -mse(answer, backbone.truth(x0, noise, t))
                student.descend(ascent, pace(self.decay, index, total))
            yield Step(
                index=index,
                edit=lambda: backbone.edit_of(student.values()),
                losses={"forget": float(ascent.detach())},
                state=lambda index=index: {**student.state("student"), "next": torch.tensor(index + 1)},
            )

    def _batches(self, task: Task, images: int) -> Iterator[tuple[int, Int[Tensor, "b"]]]:
        """Every image once an epoch, in random order."""
        index = 0
        for epoch in range(self.epochs):
            order = torch.randperm(images, generator=task.generator("few-shot order", epoch))
            for rows in order.split(self.batch):
                yield index, rows
                index += 1

    @torch.no_grad()
    def _shown(self, backbone: Backbone, task: Task) -> _Shown:
        generator = task.generator("few-shot images")
        latents: list[Tensor] = []
        for target in task.targets:
            if self.source == "uniform":
                like = backbone.noise(0)
                latents += [torch.rand(like.shape, generator=generator).to(like) for _ in range(self.shots)]
                continue
            for shot in task.images[target.name]:
                pixels = shot.pixels()
                mirrored = self.flip and bool(torch.rand((), generator=generator) < 0.5)
                latents.append(backbone.encode_image((pixels.flip(1) if mirrored else pixels)[None]))
        counts = [self.shots if self.source == "uniform" else len(task.images[t.name]) for t in task.targets]
        return _Shown(torch.cat(latents), torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        return Cost(trained=self.epochs * self.shots * targets)
