"""Concept Inversion: a new word, learned through the edited model, that stands for the erased concept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.attack import Attack, Provocation, reworded, wished
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import OBJECT_TEMPLATES, Concept, phrases
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import Task
from expunge.core.errors import check_counts, check_positive
from expunge.core.guidance import Guidance
from expunge.core.knowledge import Kind
from expunge.core.query import LearnedWord, Query
from expunge.core.victim import Access, WhiteBox
from expunge.maths.training import Learned, mse

WORD = "<v>"
"""What the learned vectors are called in a prompt."""


class _Texts(NamedTuple):
    """What the models are told beside the word."""

    null: Conditioning
    """Of the edited model: the empty text."""
    original_null: Conditioning
    original: Conditioning
    """Of the original one: what each image was made for."""


class _Points(NamedTuple):
    """What the word is asked about at one time."""

    x: Float[Tensor, "b c h w"]
    t: Tensor | int | float
    """A timestep for each row, or the same for all where predictions are guided."""
    step: int
    """Number of the denoising step, where predictions are guided."""
    wanted: Float[Tensor, "b c h w"]
    prompts: list[str]


@final
@dataclass(frozen=True, kw_only=True)
class ConceptInversion(Attack[WhiteBox]):
    r"""Learn the token embedding with which the edited model denoises images of the concept, and ask for it by that.

    .. math:: \min_{v} \mathbb{E} \big\| \epsilon - \epsilon_{\theta'}(x_t, t, \tau(\text{prompt with } v)) \big\|^2

    Pham et al. 2023 (2308.01508); methods.md B3. Images of the concept are the original model's; model and text encoder stay
    as they are. Where an attached edit changes guided predictions (SLD, negative prompt), the guided prediction is fitted to
    that of the original model for the prompt an image was made with (the concept's name, for one given without). A query's
    words for the concept are replaced by the learned one, which goes before a prompt that does not have them.
    `search="random"` is the control: at the same cost the best of random embeddings.
    Deviations: noise and timesteps are drawn anew for each micro-batch; guided predictions are taken at the steps of sampling,
    without the momentum that SLD builds up on the way.
    """

    paper: ClassVar[Paper] = Paper(
        "Circumventing Concept Erasure Methods For Text-to-Image Generative Models",
        "Pham et al.",
        2023,
        "2308.01508",
        "https://github.com/NYU-DICE-Lab/circumventing-concept-erasure",
    )
    access: ClassVar[Access] = "white box"
    spends: ClassVar[str] = "iterations"
    returns: ClassVar[str] = "with a word of {vectors} vectors learned through it in {iterations} updates"
    version: ClassVar[int] = 2
    knows: ClassVar[Mapping[str, Kind]] = {"templates": "phrases", "prompts": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("ask", "search", "vectors", "initial", "images")
    ask: str | None = None
    """What queries ask for instead of their own prompts, {} the learned word, where these would name what was erased; their
    seeds then run on from the first one's."""
    search: Literal["gradient", "random"] = "gradient"
    """How vectors are found: by descent, or (a control) as the best of one random draw an update."""
    vectors: int = 1
    """Token embeddings that are learned."""
    initial: str = "art"
    """The word whose first token's embedding they begin as."""
    prompts: tuple[str, ...] = ("a photo of a {}",)
    """What the original model makes images of the concept with; {} is its name, if it is to be named."""
    images: int = 25
    """Images of each target, made by the original model if none are given."""
    templates: tuple[str, ...] = OBJECT_TEMPLATES
    """Phrases that the word is put into; each image draws one."""
    lr: float = 8e-2
    """Learning rate: 5e-3 times the images of an update, as the authors' code scales it."""
    weight_decay: float = 1e-2
    """AdamW's."""
    iterations: int = 5000
    """Updates."""
    batch: int = 4
    """Images evaluated at a time."""
    accumulation: int = 4
    """Batches an update."""
    guidance: float = 7.5
    """Scale of guided predictions, where an edit changes them."""
    steps: int = 50
    """Denoising steps that these are taken at."""

    def __post_init__(self) -> None:
        counts = ("vectors", "images", "iterations", "batch", "accumulation", "steps")
        check_counts("concept-inversion", **{name: getattr(self, name) for name in counts})
        check_positive("concept-inversion", lr=self.lr, guidance=self.guidance)
        phrases([*self.templates, *([] if self.ask is None else [self.ask])], "")
        check_counts("concept-inversion", prompts=len(self.prompts))

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str]]:
        return wished(targets, self.prompts, self.images)

    @override
    def provoke(self, victim: WhiteBox, task: Task, queries: Sequence[Query]) -> Provocation:
        return Provocation(queries=list(self._queries(victim.backbone, task, queries)))

    def _queries(self, backbone: Backbone, task: Task, queries: Sequence[Query]) -> Iterable[Query]:
        for target in task.targets:
            asked = [q for q in queries if q.label == target.name]
            if asked:
                with torch.no_grad():  # refuses a prompt that cannot hold the word, before anything is learned
                    first = backbone.word_vectors(self.initial).repeat(self.vectors, 1)
                    for prompt in {self._prompt(q.prompt, target.name) for q in asked}:
                        backbone.encode_learned([prompt], WORD, first)
                word = LearnedWord(word=WORD, vectors=self._learned(backbone, task, target))
                for i, q in enumerate(asked):  # with one prompt for all, each needs a seed of its own
                    seed = q.seed if self.ask is None else asked[0].seed + i
                    yield replace(q, prompt=self._prompt(q.prompt, target.name), seed=seed, learned=word)

    def _prompt(self, prompt: str, name: str) -> str:
        """A query's prompt with the word in it."""
        return reworded(prompt, name, WORD, "front") if self.ask is None else self.ask.replace("{}", WORD)

    def _learned(self, backbone: Backbone, task: Task, target: Concept) -> Float[Tensor, "k d"]:
        """The vectors that stand for ``target``."""
        with torch.no_grad():
            latents = torch.cat([backbone.encode_image(s.pixels()[None]) for s in task.images[target.name]])
            first = backbone.word_vectors(self.initial).repeat(self.vectors, 1)
            null = backbone.unconditional()
            with backbone.bare():
                own = backbone.encode_each([s.prompt or target.name for s in task.images[target.name]])
                texts = _Texts(null, backbone.unconditional(), own)
            words = backbone.word_spread()
        options = {"weight_decay": self.weight_decay}
        student, best = Learned({WORD: first}, self.lr, "adamw", options), (float("inf"), first)
        for index in range(self.iterations):
            generator = task.generator("concept-inversion", target.name, index)
            if self.search == "random":
                drawn = torch.randn(first.shape, generator=generator).to(words.mean) * words.std + words.mean
                alike = task.generator("concept-inversion points", target.name)  # so that no vector has easier points
                best = min(best, (self._loss(backbone, latents, texts, drawn, alike), drawn), key=lambda b: b[0])
                continue
            now = student.tensors()[WORD]
            gradient = torch.zeros(now.shape, device=now.device)
            for _ in range(self.accumulation):
                points = self._points(backbone, latents, texts, generator)
                loss = mse(self._answer(backbone, points, texts.null, now), points.wanted)
                for found in student.pull(loss).values():  # of the word, if it is not left out
                    gradient += found / self.accumulation
            student.move({WORD: gradient})
        return student.values()[WORD] if self.search == "gradient" else best[1].to(first)

    @torch.no_grad()
    def _loss(
        self,
        backbone: Backbone,
        latents: Float[Tensor, "n c h w"],
        texts: _Texts,
        vectors: Float[Tensor, "k d"],
        generator: torch.Generator,
    ) -> float:
        """The loss of vectors on three times an update's images: what a forward and backward would have cost."""
        total = 0.0
        for _ in range(3 * self.accumulation):
            points = self._points(backbone, latents, texts, generator)
            total += float(mse(self._answer(backbone, points, texts.null, vectors), points.wanted))
        return total

    @torch.no_grad()
    def _points(
        self,
        backbone: Backbone,
        latents: Float[Tensor, "n c h w"],
        texts: _Texts,
        generator: torch.Generator,
    ) -> _Points:
        rows = torch.randint(0, len(latents), (self.batch,), generator=generator).to(latents.device)
        x0 = latents[rows]
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        ways = torch.randint(0, len(self.templates), (self.batch,), generator=generator).tolist()
        prompts = [self.templates[way].replace("{}", WORD) for way in ways]
        if not any(isinstance(edit, Guidance) for edit in backbone.edits):
            t = torch.randint(0, backbone.training_timesteps, (self.batch,), generator=generator).to(x0.device)
            return _Points(backbone.add_noise(x0, noise, t), t, 0, backbone.truth(x0, noise, t), prompts)
        times = backbone.timesteps(self.steps)
        step = int(torch.randint(0, len(times), (), generator=generator))
        x = backbone.add_noise(x0, noise, torch.full((self.batch,), times[step], device=x0.device))
        with backbone.bare():
            named = texts.original.rows(rows)
            wanted = backbone.guided(x, times[step], step, named, texts.original_null, self.guidance, {}).combined
        return _Points(x, times[step], step, wanted, prompts)

    def _answer(
        self, backbone: Backbone, points: _Points, null: Conditioning, vectors: Float[Tensor, "k d"]
    ) -> Float[Tensor, "b c h w"]:
        """What the edited model predicts for the prompts with the word, guided where an edit changes that."""
        cond = backbone.encode_learned(points.prompts, WORD, vectors)
        if isinstance(points.t, Tensor):
            return backbone.predict(points.x, points.t, cond)
        return backbone.guided(points.x, points.t, points.step, cond, null, self.guidance, {}).combined

    @override
    def cost(self, targets: int, queries: int) -> Cost:
        """Of an edit that is in the weights; one that changes guided predictions costs about four times that."""
        evaluated = targets * self.iterations * self.batch * self.accumulation
        return Cost(trained=evaluated) if self.search == "gradient" else Cost(forward=3 * evaluated)
