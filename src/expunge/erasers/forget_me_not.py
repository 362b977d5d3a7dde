"""Forget-Me-Not: attention re-steering, which trains a model to attend nowhere to the words of a concept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from expunge.core.attention import AttentionHook, AttentionStep
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept, phrases
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.knowledge import Kind
from expunge.maths.attention import columns_of
from expunge.maths.training import Learned, mse, trainable

WORD = "<v>"
"""What the inverted vectors of a target are called in the phrase."""
INVERSION_DECAY = 0.1
"""AdamW's while they are learned [C]."""


class _Noised(NamedTuple):
    """Noised images of an update."""

    x: Float[Tensor, "b c h w"]
    t: Int[Tensor, "b"]
    truth: Float[Tensor, "b c h w"]
    """What a model that knows the images predicts."""
    targets: list[int]
    """Which target each row is of."""


class _Told(NamedTuple):
    """What the model is told with a target's images."""

    text: Conditioning
    columns: Bool[Tensor, "n"]
    """The tokens of it that nothing is to attend to, J."""


@final
class Attended(AttentionHook):
    """Adds up, over layers and heads, the squared attention that some tokens get."""

    def __init__(self, columns: Bool[Tensor, "b n"]) -> None:
        """Nothing has been seen yet; ``columns`` are the tokens of each row."""
        self.columns = columns
        self.squares: list[Tensor] = []

    @override
    def probabilities(self, probabilities: Float[Tensor, "b h q n"], step: AttentionStep) -> Float[Tensor, "b h q n"]:
        self.squares.append((probabilities * self.columns[:, None, None, :]).square().sum())
        return probabilities

    def norm(self) -> Tensor:
        """The length of all that was seen, as one vector."""
        return torch.stack(self.squares).sum().sqrt()


@final
@dataclass(frozen=True, kw_only=True)
class ForgetMeNot(Eraser):
    r"""Train the model until no place of an image attends to the concept's words, in a few dozen updates on a few images.

    .. math:: \min_\theta \Big\| \big[ A_\ell(x_t, c)_{\cdot, J} \big]_\ell \Big\|_2

    2303.17591; methods.md A9. A are the probabilities of all cross-attention layers, J the columns of the concept's tokens and
    of the end tokens, and x_t a noised image of the concept. One norm is taken over everything. The whole denoiser learns
    (``group="xattn"`` is the authors' other choice). With ``inversion`` the concept is first learned as new tokens from its
    images, and these take its name's place: for what the images show and no word names. What the concept becomes is not
    chosen. Updates and rate are to be tuned for each concept, as the authors say. Ignores the retain list.
    Deviations: where no images are given the model makes them (the authors have photographs); inversion reads the same phrase,
    not textual inversion's 27, begins at the name's own tokens and then at random ones, keeps its rate constant, and is off by
    default (it is on in the authors' example); mean latents of images, cut at their middle.
    """

    paper: ClassVar[Paper] = Paper(
        "Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models",
        "Zhang et al.",
        2023,
        "2303.17591",
        "https://github.com/SHI-Labs/Forget-Me-Not",
    )
    requires: ClassVar[Sequence[str]] = ("cross-attention",)
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {"prompt": "phrases"}
    tuning: ClassVar[Sequence[str]] = ("source", "shots", "end_tokens", "inversion", "vectors", "inversion_lr")
    group: str = "full"
    """Parameters that are trained: full, or xattn and the other groups of the denoiser."""
    source: Literal["images", "zeros"] = "images"
    """What is noised: images of the target, or (the authors' option without images) nothing, so that noise alone is seen."""
    shots: int = 10
    """Images of each target, made by the model if none are given."""
    prompt: str = "a photo of {}"
    """The phrase that targets are put into, and their images are made with; for styles "a photo in the style of {}"."""
    end_tokens: bool = True
    """Whether the columns of end tokens count, too; these tell of every prompt, so it harms what is not named."""
    inversion: int = 0
    """Updates in which each target's images are learned as new tokens first; none at 0, and 500 in the authors' example."""
    vectors: int = 4
    """How many such tokens."""
    inversion_lr: float = 1e-3
    """Learning rate of the inversion."""
    lr: float = 2e-6
    """Learning rate of AdamW."""
    weight_decay: float = 1e-2
    """AdamW's."""
    clip: float = 1.0
    """How long the gradient may be at most."""
    iterations: int = 35
    """Updates of the model."""
    batch: int = 1
    """Images an update."""

    def __post_init__(self) -> None:
        check_counts(
            "forget-me-not", shots=self.shots, vectors=self.vectors, iterations=self.iterations, batch=self.batch
        )
        check_positive("forget-me-not", lr=self.lr, inversion_lr=self.inversion_lr, clip=self.clip)
        if self.inversion < 0 or not self.weight_decay >= 0:
            raise ExpungeError(
                f"forget-me-not's inversion {self.inversion} and weight_decay {self.weight_decay}: expected 0 or more"
            )
        if self.inversion and self.source == "zeros":
            raise ExpungeError(
                "forget-me-not's inversion with source zeros: expected source images, which it learns from"
            )
        phrases([self.prompt], "")

    @override
    def check(self, backbone: Backbone) -> None:
        trainable(backbone, self.group)

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str]]:
        if self.source == "zeros":
            return {}
        return {t.name: [self.prompt.replace("{}", t.name)] * self.shots for t in targets}

    @override
    def stronger(self, times: float) -> "ForgetMeNot":
        return replace(self, iterations=counted(self.iterations, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        training = _Forgetting(self, backbone, task)
        first, inverting = 0, self.inversion * len(task.targets)
        if resume is not None:
            training.load(resume)
            first = int(resume["next"])
        for index in range(first, inverting + self.iterations):
            if index < inverting:
                losses = {"invert": training.invert(*divmod(index, self.inversion))}
            else:
                losses = {"attend": training.resteer(index - inverting)}
            yield Step(
                index=index,
                edit=lambda: backbone.edit_of(training.student.values()),
                losses=losses,
                state=lambda index=index: {**training.state(), "next": torch.tensor(index + 1)},
            )

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        return Cost(trained=self.batch * (self.iterations + self.inversion * targets))


@final
class _Forgetting:
    """The training of one erasure: of tokens for the images first, if they are to be learned, and then of the model."""

    def __init__(self, method: ForgetMeNot, backbone: Backbone, task: Task) -> None:
        self.method, self.backbone, self.task = method, backbone, task
        self.shown = self._shown()
        options = {"weight_decay": method.weight_decay}
        self.student = Learned(backbone.tensors(trainable(backbone, method.group)), method.lr, "adamw", options)
        self.words = [self._word(target) for target in task.targets] if method.inversion else []
        self.told: list[_Told] = []
        """By target; empty until its words are learned."""

    def _learned(self) -> dict[str, Learned]:
        """All that is learned, by the name that it has in a state."""
        return {"student": self.student, **{f"word {number}": word for number, word in enumerate(self.words)}}

    def state(self) -> dict[str, Tensor]:
        """What `load` takes."""
        return {key: value for name, part in self._learned().items() for key, value in part.state(name).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        for name, part in self._learned().items():
            part.load(name, state)

    def invert(self, number: int, update: int) -> float:
        """An update of a target's tokens, with which the model as it is should denoise the images."""
        word, phrase = self.words[number], self.method.prompt.replace("{}", WORD)
        noised = self._noised([number], "invert", update)
        cond = self.backbone.encode_learned([phrase], WORD, word.tensors()[WORD])
        return float(word.descend(mse(self.backbone.predict(noised.x, noised.t, cond), noised.truth)))

    def resteer(self, update: int) -> float:
        """An update of the model against the attention that the targets' tokens get."""
        self.told = self.told or self._all_told()
        told, noised = self.told, self._noised(range(len(self.told)), "resteer", update)
        attended = Attended(torch.stack([told[number].columns for number in noised.targets]))
        cond = reduce(Conditioning.join, [told[number].text for number in noised.targets])
        with self.backbone.weights(self.student.tensors()), self.backbone.attending(attended):
            self.backbone.predict(noised.x, noised.t, cond)
            return float(self.student.descend(attended.norm(), clip=self.method.clip))

    @torch.no_grad()
    def _all_told(self) -> list[_Told]:
        """The phrase with each target's name, or with its learned tokens."""
        backbone, prompt = self.backbone, self.method.prompt
        told: list[_Told] = []
        for number, target in enumerate(self.task.targets):
            phrase = prompt.replace("{}", target.name)
            if self.words:
                text = backbone.encode_learned([prompt.replace("{}", WORD)], WORD, self.words[number].values()[WORD])
            else:
                text = backbone.encode([phrase])
            ids: Tensor = text.tokens[0]  # pyright: ignore[reportOptionalSubscript]
            columns = ids == -1  # as learned tokens are numbered
            if not self.words:
                columns[columns_of(backbone, phrase, target.name)] = True
            if self.method.end_tokens:
                columns = columns | (ids == backbone.tokenize([""])[0, 1])
            told.append(_Told(text, columns))
        return told

    def _word(self, target: Concept) -> Learned:
        """The tokens that a target's images are learned as: its name's own, and random ones after them."""
        backbone, count = self.backbone, self.method.vectors
        with torch.no_grad():
            ids = backbone.tokenize([target.name])
            own = backbone.embed(ids)[0, 1 : int(backbone.end(ids)[0])][:count]
            known = backbone.embed(torch.arange(backbone.vocabulary, device=own.device)[None])[0].float()
            drawn = torch.randn((count, known.shape[1]), generator=self.task.generator("forget-me-not", target.name))
            drawn = drawn.to(known) * known.std(0) + known.mean(0)
        first = torch.cat([own, drawn[len(own) :].to(own)])
        return Learned({WORD: first}, self.method.inversion_lr, "adamw", {"weight_decay": INVERSION_DECAY})

    def _noised(self, targets: Sequence[int], purpose: str, update: int) -> _Noised:
        """The images of an update, of some of the targets: all of theirs once, in random order, before one comes again."""
        known = [(number, row) for number in targets for row in range(len(self.shown[number]))]
        chosen: list[tuple[int, int]] = []
        for place in range(update * self.method.batch, (update + 1) * self.method.batch):
            turn, at = divmod(place, len(known))
            generator = self.task.generator("forget-me-not order", purpose, *targets, turn)
            chosen.append(known[int(torch.randperm(len(known), generator=generator)[at])])
        generator = self.task.generator("forget-me-not", purpose, *targets, update)
        x0 = torch.stack([self.shown[number][row] for number, row in chosen])
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        t = torch.randint(0, self.backbone.training_timesteps, (len(x0),), generator=generator).to(x0.device)
        x, truth = self.backbone.add_noise(x0, noise, t), self.backbone.truth(x0, noise, t)
        return _Noised(x, t, truth, [number for number, _ in chosen])

    @torch.no_grad()
    def _shown(self) -> list[Float[Tensor, "n c h w"]]:
        """The latents of each target's images."""
        targets = [target.name for target in self.task.targets]
        if self.method.source == "zeros":
            return [torch.zeros_like(self.backbone.noise(0)) for _ in targets]
        images = [self.task.images[name] for name in targets]
        return [torch.cat([self.backbone.encode_image(shot.pixels()[None]) for shot in shots]) for shots in images]
