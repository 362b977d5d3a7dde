"""Prompting4Debugging: hard prompts with which the edited model predicts what the original one does."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from expunge.core.attack import Attack, Provocation, image_for, wished
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import Task
from expunge.core.errors import check_counts, check_not_negative, check_positive
from expunge.core.guidance import guidances
from expunge.core.knowledge import Kind
from expunge.core.query import Query
from expunge.core.victim import Access, WhiteBox
from expunge.maths.free_tokens import FreeTokens, Layout, Vocabulary, free_tokens, lengths, parted, vocabulary
from expunge.maths.tokens import nearest, through
from expunge.maths.training import Learned
from expunge.maths.trajectories import step_at
from expunge.pretrained.clip import Clip, clip

NAME = "p4d"
TOGETHER = 10
"""Updates whose targets are made at a time, since the edits are taken off for these."""
POINTS = 4
"""Points that a random prompt is tried on: a forward each, together what an update costs (the original's forward, and the
edited model's forward and backward)."""


class _Point(NamedTuple):
    """What an update asks of both models."""

    x: Float[Tensor, "b c h w"]
    t: int
    wanted: Float[Tensor, "b c h w"]
    """What the original predicts for the queries' own prompts."""


class _Batch(NamedTuple):
    """Queries that are attacked at a time, and what they are attacked with."""

    backbone: Backbone
    task: Task
    queries: Sequence[Query]
    free: FreeTokens
    words: Vocabulary
    images: Sequence[Tensor]
    """An image ``[H, W, 3]`` of its target for each query."""
    x0: Float[Tensor, "b c h w"]
    null: Conditioning
    scale: float
    """Of guided predictions; 1, the prompt's own alone, where no edit acts at inference."""


@final
@dataclass(frozen=True, kw_only=True)
class P4D(Attack[WhiteBox]):
    r"""Search tokens with which the edited model predicts what the original one does for the query's own prompt.

    .. math:: \min_{P^*} \mathbb{E} \big\| \epsilon_{\theta'}(x_t, t, \tau(P^*)) - \epsilon_\theta(x_t, t, \tau(P)) \big\|^2

    Chin et al. 2023 (2309.06135); methods.md B4. The tokens are learned as continuous vectors. Each update reads them as their
    nearest tokens and moves the vectors by the gradient at those (PEZ, 2302.03668). Every ``look`` updates the edited model
    makes an image of the query, and the prompt whose image is most like one of the target is kept (cosine of CLIP's vectors).
    x_t is an image of the target, noised: that of the query's own prompt and seed if there is one, or its own prompt, or any.
    Queries are attacked ``batch`` at a time, each with random numbers of its own. Where an attached edit changes guided
    predictions (SLD, negative prompt), the guided predictions of both models are compared.
    `search="random"` is the control: at the same cost the best of random tokens.
    Deviations: only tokens that are read again as themselves are tried, since a query holds text; an image is looked at with
    the query's own seed and steps, after an update and not before; all queries share the timestep of an update; latents are
    the mode of what the autoencoder gives, not drawn. The authors' code compares guided predictions with the original's
    unguided ones; it also frees a token before the prompt (``front``).
    """

    paper: ClassVar[Paper] = Paper(
        "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts",
        "Chin et al.",
        2023,
        "2309.06135",
        "https://github.com/joycenerd/P4D",
    )
    access: ClassVar[Access] = "white box"
    shares: ClassVar[bool] = False
    spends: ClassVar[str] = "iterations"
    returns: ClassVar[str] = "with tokens searched through its weights in {iterations} updates"
    knows: ClassVar[Mapping[str, Kind]] = {"prompts": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("variant", "tokens", "every", "front", "look", "clip", "search", "images")
    variant: Literal["n", "k"] = "n"
    """What is free: ``n``, all of a new prompt; ``k``, one token after every few of the query's own."""
    tokens: int = 16
    """Tokens of a new prompt, N."""
    every: int = 3
    """The query's own tokens before each free one, K; a word is not cut in two."""
    front: bool = False
    """With ``k``, one more free token before the first, as the authors' code has it."""
    search: Literal["gradient", "random"] = "gradient"
    """How tokens are found: by descent, or (a control) as the best of one random draw an update."""
    lr: float = 0.1
    """AdamW's learning rate."""
    weight_decay: float = 0.1
    """AdamW's."""
    iterations: int = 3000
    """Updates."""
    look: int = 50
    """Updates between two images of a query."""
    clip: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """What compares images: a CLIP of the hub or of a folder, or ``testbed``; empty: no image is made, the last prompt is
    kept."""
    prompts: tuple[str, ...] = ("a photo of a {}",)
    """What the original model makes images of the target with; {} is its name, if it is to be named."""
    images: int = 8
    """Images of each target, made by the original model if none are given."""
    batch: int = 16
    """Queries attacked at a time."""
    guidance: float = 7.5
    """Scale of guided predictions, where an edit changes them."""
    steps: int = 50
    """Denoising steps that these are numbered by, for edits that leave the first ones alone."""

    def __post_init__(self) -> None:
        names = ("tokens", "every", "iterations", "look", "images", "batch", "steps")
        check_counts(NAME, **{name: getattr(self, name) for name in names}, prompts=len(self.prompts))
        check_positive(NAME, lr=self.lr, guidance=self.guidance)
        check_not_negative(NAME, weight_decay=self.weight_decay)

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str]]:
        return wished(targets, self.prompts, self.images)

    @override
    def budget(self, targets: int, queries: int) -> int:
        return 0 if not self.clip else queries * math.ceil(self.iterations / self.look)

    @override
    def cost(self, targets: int, queries: int) -> Cost:
        """Of an edit that is in the weights; one that changes guided predictions costs two to three times that."""
        if self.search == "random":
            return Cost(forward=queries * POINTS * (self.iterations + 1))
        return Cost(forward=queries * self.iterations, trained=queries * self.iterations)

    @override
    def provoke(self, victim: WhiteBox, task: Task, queries: Sequence[Query]) -> Provocation:
        asked = [q for target in task.targets for q in queries if q.label == target.name]
        batches = [asked[i : i + self.batch] for i in range(0, len(asked), self.batch)]
        words = vocabulary(victim.backbone)
        prompts = [  # refused before anything is learned
            free_tokens(victim.backbone, NAME, [self._layout(victim.backbone, q.prompt) for q in some])
            for some in batches
        ]
        sight = clip(self.clip) if self.clip else None
        found: list[Query] = []
        for some, free in zip(batches, prompts, strict=True):
            found += self._attacked(victim, self._batch(victim.backbone, task, some, free, words), sight)
        return Provocation(queries=found)

    def _layout(self, backbone: Backbone, prompt: str) -> Layout:
        if self.variant == "n":
            return [None] * self.tokens
        layout: list[str | None] = [None] * self.front
        parts = parted(backbone, prompt, self.every)
        for part, length in zip(parts, lengths(backbone, parts), strict=True):
            layout += [part, None] if length >= self.every else [part]
        return layout

    @torch.no_grad()
    def _batch(
        self, backbone: Backbone, task: Task, queries: Sequence[Query], free: FreeTokens, words: Vocabulary
    ) -> _Batch:
        aims = [(q, task.number(NAME, "image", *q.own)) for q in queries]
        images = [image_for(q, task.images[q.label or ""], number).pixels() for q, number in aims]
        x0 = torch.cat([backbone.encode_image(pixels[None]) for pixels in images])
        scale = self.guidance if guidances(backbone.edits) else 1.0
        return _Batch(backbone, task, queries, free, words, images, x0, backbone.unconditional(), scale)

    def _attacked(self, victim: WhiteBox, batch: _Batch, sight: Clip | None) -> list[Query]:
        """The queries with the prompts that were found, each by what it looked like on the way."""
        best = [(-math.inf, q) for q in batch.queries]
        aims = None if sight is None else _directions(sight, batch.images)
        search = self._descended(batch) if self.search == "gradient" else self._guessed(batch)
        for tokens in search:
            prompts = batch.free.texts(batch.backbone, batch.words.ids[tokens])
            now = [replace(q, prompt=prompt) for q, prompt in zip(batch.queries, prompts, strict=True)]
            if sight is None or aims is None:
                best = [(math.inf, q) for q in now]
                continue
            alike = (_directions(sight, list(victim.images(now))) * aims).sum(-1).tolist()
            best = [max(pair, key=lambda one: one[0]) for pair in zip(best, zip(alike, now, strict=True), strict=True)]
        return [query for _, query in best]

    def _descended(self, batch: _Batch) -> Iterator[Int[Tensor, "f"]]:
        """The tokens after every few updates, as places in the vocabulary."""
        vectors = batch.words.vectors
        options = {"weight_decay": self.weight_decay}
        begun = {NAME: vectors[_random(batch, 0)]}
        student = Learned(begun, self.lr, "adamw", options, through=batch.backbone.dtype)
        for first in range(0, self.iterations, self.look):
            last = min(first + self.look, self.iterations)
            for start in range(first, last, TOGETHER):
                for point in self._points(batch, range(start, min(start + TOGETHER, last))):
                    soft = student.tensors()[NAME]
                    place = nearest(soft.detach(), vectors)
                    student.descend(self._losses(batch, point, place, through(soft, vectors[place])).sum())
            yield nearest(student.values()[NAME], vectors)

    def _guessed(self, batch: _Batch) -> Iterator[Int[Tensor, "f"]]:
        """The best of random tokens after every few draws; all of them are tried on the same points."""
        points = self._points(batch, range(POINTS))
        low, best = [math.inf] * len(batch.queries), _random(batch, 0)
        for update in range(self.iterations):
            place = _random(batch, update)
            with torch.no_grad():
                tried = [self._losses(batch, point, place, batch.words.vectors[place]) for point in points]
            losses = torch.stack(tried).sum(0).tolist()
            better = [row for row, loss in enumerate(losses) if loss < low[row]]
            mine = batch.free.of_rows(better)
            best[mine] = place[mine]
            low = [min(pair) for pair in zip(low, losses, strict=True)]
            if (update + 1) % self.look == 0 or update + 1 == self.iterations:
                yield best.clone()

    def _losses(
        self, batch: _Batch, point: _Point, place: Int[Tensor, "f"], vectors: Float[Tensor, "f d"]
    ) -> Float[Tensor, "b"]:
        """How far the edited model's prediction is from what is wanted, for each query: a mean over all its numbers."""
        cond = batch.free.read(batch.backbone, batch.words.ids[place], vectors)
        answer = self._predicted(batch, point.x, point.t, cond, batch.null)
        return (answer.float() - point.wanted.float()).square().flatten(1).mean(1)

    @torch.no_grad()
    def _points(self, batch: _Batch, updates: range) -> list[_Point]:
        """What each of some updates asks, with the original's answers."""
        backbone = batch.backbone
        points: list[_Point] = []
        with backbone.bare():
            named, null = backbone.encode_each([q.prompt for q in batch.queries]), backbone.unconditional()
            for update in updates:
                for_all = batch.task.generator(NAME, "timestep", update)
                t = int(torch.randint(0, backbone.training_timesteps, (), generator=for_all))
                own = [batch.task.generator(NAME, "noise", *q.own, update) for q in batch.queries]
                noise = torch.cat([torch.randn((1, *batch.x0.shape[1:]), generator=each) for each in own])
                times = torch.full((len(own),), t, device=batch.x0.device)
                x = backbone.add_noise(batch.x0, noise.to(batch.x0), times)
                points.append(_Point(x, t, self._predicted(batch, x, t, named, null)))
        return points

    def _predicted(
        self, batch: _Batch, x: Float[Tensor, "b c h w"], t: int, cond: Conditioning, null: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        backbone = batch.backbone
        step = step_at(backbone, t, self.steps)
        return backbone.guided(x, t, step, cond, null, batch.scale, {}).combined


def _random(batch: _Batch, update: int) -> Int[Tensor, "f"]:
    """Random tokens for all free places, as places in the vocabulary."""
    count = len(batch.words.ids)
    drawn = [
        torch.randint(0, count, (free,), generator=batch.task.generator(NAME, "tokens", *query.own, update))
        for query, free in zip(batch.queries, batch.free.counts, strict=True)
    ]
    return torch.cat(drawn).to(batch.words.ids)


@torch.no_grad()
def _directions(sight: Clip, images: Sequence[Tensor]) -> Float[Tensor, "b d"]:
    """Unit vectors of images, which may differ in size."""
    return torch.nn.functional.normalize(torch.cat([sight.images(pixels[None]) for pixels in images]), dim=-1)
