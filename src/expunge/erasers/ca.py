"""Concept Ablation: teach a concept's prompts to give what the anchor's give."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept, phrases
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.knowledge import Kind
from expunge.core.query import Shot
from expunge.core.texts import warn_of_t5
from expunge.maths.training import Decay, Learned, Optimizer, numbers, pace, trainable

INSERTED = {
    "style": ("{}, in the style of {c}", "in {c}'s style, {}", "in {c}'s style, {}"),
    "content": ("{c}, {}", "in {c} style, {}", "{}, {c}"),
}
"""How a concept goes into an anchor prompt; each point draws one. (The second style phrase has twice the weight.)"""


class _Pair(NamedTuple):
    """One point: an image of the anchor, its prompt, and the same prompt with the concept in it."""

    shot: Shot
    anchor: str
    target: str


class _Batch(NamedTuple):
    """The points of an update."""

    latents: Float[Tensor, "b c h w"]
    kept: Float[Tensor, "b 1 h w"]
    """1 where the image is, 0 in the border around one that was made smaller."""
    anchors: list[str]
    shown: list[str]
    """The anchor prompts with words on the images' size."""
    targets: list[str]
    """The concept's prompts, with these words."""


@final
@dataclass(frozen=True, kw_only=True)
class CA(Eraser):
    r"""Make a concept's prompts predict what the anchor's do, on images of the anchor.

    .. math:: \big\| \epsilon_{\theta'}(x_t, c^*) - \mathrm{sg}[\epsilon_{\theta'}(x_t, c)] \big\|^2
        \quad\text{or}\quad \big\| \epsilon_{\theta'}(x_t, c^*) - \epsilon \big\|^2

    2303.13516; methods.md A5: x_t is a noised image of the anchor c, and c* its prompt with the concept put in. The second form
    is ``variant="noise"``. The learning rate is the authors' 2e-6 times their batch of 8. For nudity they take
    ``kind="content", group="attn", lr=3.2e-5, iterations=400, prior=True``. Ignores the retain list.
    Deviations: anchor prompts are templates (the authors ask a language model for 200); the target's own embedding is learned
    as its tokens' (``group="embedding"``); the weight on timesteps is 1 at all of them. The authors' diffusers code sums the
    first term over four channels and divides by one mask, and so has four times a mean, but a mean for the prior: its
    ``prior_weight`` of 1 is 0.25 here. It cuts gradients to a length of 1, here none is cut. Its prior is of other images of
    the anchor, whole and without a mask; here it is of the first term's points, with words on their size.
    """

    paper: ClassVar[Paper] = Paper(
        "Ablating Concepts in Text-to-Image Diffusion Models",
        "Kumari et al.",
        2023,
        "2303.13516",
        "https://github.com/nupurkmr9/concept-ablation",
    )
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {"anchor": "anchor"}
    tuning: ClassVar[Sequence[str]] = ("variant", "kind", "prompts", "anchor_images", "prior", "prior_weight", "resize")
    variant: Literal["model", "noise"] = "model"
    """What the concept's prompts should predict: what the model predicts for the anchor's, or the noise itself."""
    kind: Literal["object", "style", "content", "fixed"] = "object"
    """How c* is made of an anchor prompt: the anchor's word replaced, a style or content added, or the target's words alone."""
    anchor: str = ""
    """What targets become when they name no anchor of their own; a word of their kind, such as cat for Grumpy Cat."""
    prompts: tuple[str, ...] = (
        "a photo of a {}",
        "a photo of a {} on a table",
        "a {} in the grass",
        "a {} by the sea",
        "a {} at night",
        "a {} in the snow",
        "a close-up photo of a {}",
        "a {} seen from the side",
        "a small {} in a large room",
        "a drawing of a {}",
    )
    """Prompts that the anchor's images are made with."""
    anchor_images: int = 1000
    """Images of each target's anchor, made by the model if none are given."""
    prior: bool = False
    """Also keep the anchor's own prompts at the noise."""
    prior_weight: float = 1.0
    """Weight of that term."""
    flip: bool = True
    """Mirror each image with probability a half."""
    resize: bool = True
    """Shrink (with words that say so) or enlarge images at random."""
    group: str = "xattn-strict"
    """Parameters that learn: xattn-strict (keys and values), embedding (the target's tokens), attn, full."""
    lr: float = 1.6e-5
    """Learning rate."""
    optimizer: Optimizer = "adamw"
    """Adam with decoupled weight decay (0.01), without, or plain gradient descent."""
    decay: Decay = "none"
    """How the learning rate falls."""
    iterations: int = 100
    """Updates."""
    batch: int = 8
    """Points an update."""

    def __post_init__(self) -> None:
        check_counts("ca", anchor_images=self.anchor_images, iterations=self.iterations, batch=self.batch)
        check_positive("ca", lr=self.lr, prior_weight=self.prior_weight)
        phrases(self.prompts, "")

    @property
    @override
    def version(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2 with ``resize``: since then what the anchor's prompt predicts is asked without words on an image's size."""
        return 2 if self.resize and self.variant == "model" else 1

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str]]:
        return {t.name: self._asked(self._anchor(t)) for t in targets}

    def _anchor(self, target: Concept) -> str:
        anchor = self.anchor if target.anchor is None else target.anchor
        if not anchor.strip():
            raise ExpungeError(
                f"ca has no anchor for '{target.name}': expected what it should become, as a setting or with the target"
            )
        return anchor

    def _asked(self, anchor: str) -> list[str]:
        asked = phrases(self.prompts, anchor)
        return [asked[i % len(asked)] for i in range(self.anchor_images)]

    @override
    def check(self, backbone: Backbone) -> None:
        if self.group == "embedding":
            warn_of_t5(backbone, "ca's embedding")
        else:
            trainable(backbone, self.group)

    @override
    def stronger(self, times: float) -> "CA":
        return replace(self, iterations=counted(self.iterations, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        shots = {t.name: task.images[t.name] for t in task.targets}
        for target in task.targets:
            for shot in shots[target.name]:
                self._with_concept(shot.prompt, target, 0)  # so that a prompt without the anchor is refused at once
        rows = _TokenRows(backbone, task) if self.group == "embedding" else None
        start = backbone.tensors(trainable(backbone, self.group)) if rows is None else rows.start()
        student = Learned(start, self.lr, self.optimizer)
        first = 0
        if resume is not None:
            student.load("student", resume)
            first = int(resume["next"])
        for index in range(first, self.iterations):
            losses = self._update(backbone, task, student, rows, index)
            yield Step(
                index=index,
                edit=lambda: backbone.edit_of(student.values() if rows is None else rows.placed(student.values())),
                losses=losses,
                state=lambda index=index: {**student.state("student"), "next": torch.tensor(index + 1)},
            )

    def _update(
        self, backbone: Backbone, task: Task, student: Learned, rows: "_TokenRows | None", index: int
    ) -> dict[str, float]:
        generator = task.generator("ca", index)
        batch = self._drawn(backbone, task, generator)
        noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
        t = torch.randint(0, backbone.training_timesteps, (self.batch,), generator=generator).to(noise.device)
        x, truth = backbone.add_noise(batch.latents, noise, t), backbone.truth(batch.latents, noise, t)
        now, ask = student.tensors(), backbone.predict
        with backbone.weights(now if rows is None else rows.placed(now)):
            wanted = truth
            if self.variant == "model":
                with torch.no_grad():
                    wanted = ask(x, t, backbone.encode(batch.anchors))
            terms = {"ablate": _masked(ask(x, t, backbone.encode(batch.targets)), wanted, batch.kept)}
            if self.prior:
                terms["prior"] = _masked(ask(x, t, backbone.encode(batch.shown)), truth, batch.kept)
            loss = terms["ablate"] + (self.prior_weight * terms["prior"] if self.prior else 0.0)
            student.descend(loss, pace(self.decay, index, self.iterations))
        return numbers(terms)

    def _drawn(self, backbone: Backbone, task: Task, generator: torch.Generator) -> _Batch:
        latents, kept, anchors, shown, targets = [], [], [], [], []
        for _ in range(self.batch):
            target = task.targets[int(torch.randint(0, len(task.targets), (), generator=generator))]
            of_anchor = task.images[target.name]
            shot = of_anchor[int(torch.randint(0, len(of_anchor), (), generator=generator))]
            way = int(torch.randint(0, 6, (), generator=generator))
            pixels = shot.pixels()
            if self.flip and bool(torch.rand((), generator=generator) < 0.5):
                pixels = pixels.flip(1)
            words, inside = "", torch.ones(pixels.shape[:2])
            if self.resize:
                pixels, inside, words = resized(pixels, generator)
            encoded = backbone.encode_image(pixels[None])
            latents.append(encoded)
            kept.append(_whole_cells(inside, encoded.shape[-2:]).to(encoded))
            anchors.append(shot.prompt)  # without these words [C]
            shown.append(words + shot.prompt)
            targets.append(words + self._with_concept(shot.prompt, target, way))
        return _Batch(torch.cat(latents), torch.stack(kept), anchors, shown, targets)

    def _with_concept(self, prompt: str, target: Concept, way: int) -> str:
        """The anchor prompt with the concept in it, c*."""
        if self.kind == "fixed":
            return target.name
        if self.kind == "object":
            anchor = self._anchor(target)
            if anchor not in prompt:
                raise ExpungeError(f"the anchor prompt '{prompt}' does not name the anchor '{anchor}': expected it to")
            return prompt.replace(anchor, target.name)
        choices = INSERTED[self.kind]
        return choices[way % len(choices)].replace("{c}", target.name).replace("{}", prompt)

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        points = self.iterations * self.batch
        return Cost(forward=points * (self.variant == "model"), trained=points * (1 + self.prior))


@final
class _TokenRows:
    """The rows of the token embeddings (of all CLIP text encoders) that belong to the targets' words."""

    def __init__(self, backbone: Backbone, task: Task) -> None:
        ids = backbone.tokenize([t.name for t in task.targets])
        words = {
            i
            for row, end in zip(ids, backbone.end(ids).tolist(), strict=True)
            for i in row[backbone.first : end].tolist()
        }
        self.tables = backbone.tensors(backbone.group("text-embedding"))
        self.rows = torch.tensor(sorted(words), device=ids.device)

    def start(self) -> dict[str, Tensor]:
        return {name: table[self.rows] for name, table in self.tables.items()}

    def placed(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tables with the learned rows in them."""
        return {name: table.index_copy(0, self.rows, learned[name]) for name, table in self.tables.items()}


class Resized(NamedTuple):
    """An image that was shrunk or enlarged, at its old size."""

    pixels: UInt8[Tensor, "H W 3"]
    inside: Float[Tensor, "H W"]
    """1 where there is an image, 0 around a small one."""
    words: str
    """What its prompt should begin with."""


def resized(pixels: UInt8[Tensor, "H W 3"], generator: torch.Generator) -> Resized:
    """Shrink an image to a third or more (two times in three), or enlarge it by 1.2 to 1.4 and cut a part out.

    Custom Diffusion's augmentation, which the authors use; the place is random.
    """
    height, width = pixels.shape[:2]
    draw = torch.rand(4, generator=generator).tolist()
    factor = 1 / 3 + draw[0] * 2 / 3 if draw[1] < 0.66 else 1.2 + 0.2 * draw[0]
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    picture = pixels.permute(2, 0, 1)[None].float()
    scaled = functional.interpolate(picture, size=size, mode="bilinear", antialias=True)[0].round().clamp(0, 255)
    scaled = scaled.to(torch.uint8).permute(1, 2, 0)
    top, left = (int(d * (abs(a - b) + 1)) for d, a, b in zip(draw[2:], (height, width), size, strict=True))
    which = int(torch.randint(0, 2, (), generator=generator))
    if factor > 1:
        cut = scaled[top : top + height, left : left + width]
        return Resized(cut, torch.ones(height, width), ("zoomed in ", "close up ")[which])
    canvas, inside = torch.full_like(pixels, 127), torch.zeros(height, width)
    canvas[top : top + size[0], left : left + size[1]] = scaled
    inside[top : top + size[0], left : left + size[1]] = 1
    return Resized(canvas, inside, ("a far away ", "very small ")[which] if factor < 0.6 else "")


def _whole_cells(inside: Float[Tensor, "H W"], size: Sequence[int]) -> Float[Tensor, "1 h w"]:
    """1 for the latent cells that lie whole in the image."""
    return (functional.adaptive_avg_pool2d(inside[None], (size[0], size[1])) > 0.999).float()


def _masked(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"], kept: Float[Tensor, "b 1 h w"]) -> Tensor:
    """Mean squared error over the kept cells of each image, then over images."""
    error = (a.float() - b.float()).square() * kept
    cells = kept.sum((1, 2, 3)).clamp(min=1) * a.shape[1]
    return (error.sum((1, 2, 3)) / cells).mean()
