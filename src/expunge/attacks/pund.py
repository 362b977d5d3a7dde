"""PUND: a new word for the concept, learned on the original model while that forgets what was found, to work elsewhere too."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.attack import Attack, Provocation, reworded, wished
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept, spans
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.edit import Weights
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, check_counts, check_not_negative, check_positive
from expunge.core.knowledge import Kind
from expunge.core.query import LearnedWord, Query
from expunge.core.victim import Access, WhiteBox
from expunge.maths.closed_form import ridge_edit
from expunge.maths.text_pairs import erased, paired, paired_whole, two_encoders
from expunge.maths.training import Learned, mse, trainable

NAME = "pund"
WORD = "<v>"
"""What the learned vector is called in a prompt."""
POINTS = 3
"""Forwards that cost what an update does, backward included: the control tries a random vector on so many times more points."""
ANCHOR, PULL = " ", 0.5
"""Of the edit that candidates are tried on: UCE's, with the settings of its first script."""


class _Lesson(NamedTuple):
    """What a word is learned from, and with what."""

    backbone: Backbone
    """The original: it carries no edit."""
    task: Task
    target: Concept
    latents: Float[Tensor, "n c h w"]
    prompts: Sequence[str]
    """Of the images, with the word in them."""
    neutral: Conditioning
    first: Float[Tensor, "1 d"]
    """What the word begins as."""


@final
@dataclass(frozen=True, kw_only=True)
class PUND(Attack[WhiteBox]):
    r"""Learn a word on the original model, which is taught to forget each find, so that it works where others erased.

    .. math:: \min_{v} \mathbb{E} \big\| \epsilon - \epsilon_{\theta}(x_t, t, \tau([P; v])) \big\|^2, \qquad
              \min_{\theta} \mathbb{E} \big\| \epsilon_\theta(x_t, t, \tau([P; v])) -
              \mathrm{sg}\, \epsilon_\theta(x_t, t, \tau(\text{neutral})) \big\|^2

    Han et al. 2024 (2404.19382); methods.md B6. The edited model takes no part: its edits are taken off, and the word is asked
    for as it was found. An epoch draws one image of the target and goes through equal parts of the timesteps, noisy ones first:
    in each it draws one and takes `repeats` updates of v there. Every `harden` epochs the cross-attention takes an update in
    each part, against the word. A loss is divided by its own value, so that no timestep counts more than another. In a prompt
    the word stands where the concept is named (by one of ``words``), or at the end.
    With an ``oracle`` candidates are tried on the way, as the authors do, on a model that they edited themselves: the original
    with UCE's edit for the target's names, made here from its text encoder and matrices. The candidate whose image the oracle
    is surest of is kept; without one it is the last. `search="random"` is the control: at the same cost the best of random
    vectors.
    Deviations: the authors cut a name out of a prompt and append the word, which is the same for theirs; their update of the
    cross-attention reads the word as it was before its last update; they train on images that a classifier is sure of, where
    these are the model's as they come (or yours); and they choose among candidates by eye and by score.
    """

    paper: ClassVar[Paper] = Paper(
        "Probing Unlearned Diffusion Models: A Transferable Adversarial Attack Perspective",
        "Han et al.",
        2024,
        "2404.19382",
        "https://github.com/hxxdtd/PUND",
    )
    access: ClassVar[Access] = "white box"
    spends: ClassVar[str] = "epochs"
    on_original: ClassVar[bool] = True
    returns: ClassVar[str] = "with a word learned on the original model in {epochs} epochs"
    knows: ClassVar[Mapping[str, Kind]] = {
        "prompts": "phrases",
        "words": "words",
        "neutral": "phrases",
        "oracle": "oracles",
    }
    tuning: ClassVar[Sequence[str]] = ("search", "initial", "images", "bins", "repeats", "harden", "harden_lr", "look")
    search: Literal["gradient", "random"] = "gradient"
    """How the vector is found: by descent, or (a control) as the best of one random draw an epoch."""
    words: tuple[str, ...] = ()
    """What prompts name the target by beside its own name, which the word takes the place of: the kinds of a class, say. A
    prompt that keeps a name leaves the word nothing to learn."""
    initial: str | None = None
    """The word whose first token's embedding it begins as; if not given, the last word of the name in the first prompt."""
    prompts: tuple[str, ...] = ("a photo of a {}",)
    """What the original model makes images of the concept with; {} is its name, if it is to be named."""
    images: int = 1000
    """Images of each target, made by the original model if none are given."""
    neutral: str = "a photo of"
    """The text that the model is taught to read for the word."""
    lr: float = 0.1
    """Learning rate of the word (AdamW)."""
    weight_decay: float = 0.1
    """AdamW's."""
    epochs: int = 3000
    """Images that are gone through, one an epoch."""
    bins: int = 5
    """Equal parts of the timesteps; an epoch draws one timestep of each."""
    repeats: int = 2
    """Updates of the word at each of these."""
    harden: int = 200
    """Epochs after which the model forgets what was found; 0: never, the authors' ablation."""
    harden_lr: float = 1e-5
    """Learning rate of that (Adam)."""
    group: str = "xattn"
    """Parameters that are updated for it."""
    oracle: str | None = None
    """A judge that chooses among candidates; none: the last one is taken."""
    look: int = 2
    """Epochs between two candidates, of each of which the oracle sees one image."""

    def __post_init__(self) -> None:
        names = ("images", "epochs", "bins", "repeats", "look")
        check_counts(NAME, **{name: getattr(self, name) for name in names}, prompts=len(self.prompts))
        check_positive(NAME, lr=self.lr, harden_lr=self.harden_lr)
        check_not_negative(NAME, weight_decay=self.weight_decay)
        if self.harden < 0:
            raise ExpungeError(f"{NAME}'s harden is {self.harden}: expected 0 (never) or more")
        if self.initial is not None and not self.initial.strip():
            raise ExpungeError(f"{NAME}'s initial is empty: expected a word, or none for the name's last one")
        if any(not word.strip() for word in self.words):
            raise ExpungeError(f"a word of {NAME} is empty: expected words that prompts name")

    @property
    @override
    def version(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """3 where an oracle looks at the last epoch's word, too, though no look was due."""
        return 2 if self.oracle is None or self.epochs % self.look == 0 else 3

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str]]:
        return wished(targets, self.prompts, self.images)

    @override
    def budget(self, targets: int, queries: int) -> int:
        return 0 if self.oracle is None else targets * math.ceil(self.epochs / self.look)

    @override
    def cost(self, targets: int, queries: int) -> Cost:
        updates = targets * self.epochs * self.bins * self.repeats
        if self.search == "random":
            return Cost(forward=POINTS * updates)
        hardened = targets * self.bins * ((self.epochs - 1) // self.harden if self.harden else 0)
        return Cost(forward=hardened, trained=updates + hardened)

    @override
    def provoke(self, victim: WhiteBox, task: Task, queries: Sequence[Query]) -> Provocation:
        answers: list[Query] = []
        with victim.backbone.bare():
            for target in task.targets:
                asked = [
                    replace(q, prompt=reworded(q.prompt, self._names(target), WORD, "end"))
                    for q in queries
                    if q.label == target.name
                ]
                if asked:
                    lesson = self._lesson(victim.backbone, task, target)
                    for prompt in {q.prompt for q in asked}:  # refuses one that cannot hold the word
                        lesson.backbone.encode_learned([prompt], WORD, lesson.first)
                    word = LearnedWord(word=WORD, vectors=self._chosen(victim, lesson, asked))
                    answers += [replace(q, learned=word) for q in asked]
        return Provocation(queries=answers)

    def _names(self, target: Concept) -> Sequence[str]:
        """What prompts may name the target by."""
        return (*self.words, target.name)

    @torch.no_grad()
    def _lesson(self, backbone: Backbone, task: Task, target: Concept) -> _Lesson:
        shots = task.images[target.name]
        names = self._names(target)
        said = [shot.prompt or target.name for shot in shots]
        first = next((name for name in names if spans(said[0], name)), target.name)
        initial = first.split()[-1] if self.initial is None else self.initial
        return _Lesson(
            backbone=backbone,
            task=task,
            target=target,
            latents=torch.cat([backbone.encode_image(shot.pixels()[None]) for shot in shots]),
            prompts=[reworded(prompt, names, WORD, "end") for prompt in said],
            neutral=backbone.encode([self.neutral]),
            first=backbone.word_vectors(initial),
        )

    def _chosen(self, victim: WhiteBox, lesson: _Lesson, asked: Sequence[Query]) -> Float[Tensor, "1 d"]:
        """The last vector; or that whose image, by the original with UCE's edit, the oracle is surest of."""
        search = self._descended(lesson) if self.search == "gradient" else self._guessed(lesson)
        edit = None if self.oracle is None else _rehearsed(lesson.backbone, self._names(lesson.target))
        best, found = -1.0, lesson.first
        for epoch, vector in enumerate(search, 1):
            if edit is None:
                found = vector
            elif epoch % self.look == 0 or epoch == self.epochs:
                turn = asked[(math.ceil(epoch / self.look) - 1) % len(asked)]
                query = replace(turn, learned=LearnedWord(word=WORD, vectors=vector))
                with lesson.backbone.attached([edit]):
                    image = victim.images([query])
                sure = float(victim.verdicts(image, lesson.target.name, self.oracle))
                best, found = max((best, found), (sure, vector), key=lambda one: one[0])
        return found

    def _descended(self, lesson: _Lesson) -> Iterator[Float[Tensor, "1 d"]]:
        """The vector after each epoch."""
        backbone = lesson.backbone
        word = Learned({WORD: lesson.first}, self.lr, "adamw", {"weight_decay": self.weight_decay})
        model = Learned(backbone.tensors(trainable(backbone, self.group)), self.harden_lr)
        for epoch in range(self.epochs):
            draw = lesson.task.generator(NAME, lesson.target.name, epoch)
            row = int(torch.randint(0, len(lesson.latents), (), generator=draw))
            with backbone.weights(model.values()):
                for t in self._times(backbone, draw):
                    for _ in range(self.repeats):
                        loss = _fit(lesson, row, t, word.tensors()[WORD], draw)
                        word.descend(loss / loss.detach())
            yield word.values()[WORD].clone()
            if self.harden and epoch and epoch % self.harden == 0:
                for t in self._times(backbone, draw):
                    with backbone.weights(model.tensors()):
                        loss = _find(lesson, row, t, word.values()[WORD], draw)
                        model.descend(loss / loss.detach())

    def _guessed(self, lesson: _Lesson) -> Iterator[Float[Tensor, "1 d"]]:
        """The best of random vectors so far, with an epoch's worth of points for each; all are tried on the same."""
        words, low, best = lesson.backbone.word_spread(), float("inf"), lesson.first
        for epoch in range(self.epochs):
            own = lesson.task.generator(NAME, lesson.target.name, epoch)
            drawn = torch.randn(lesson.first.shape, generator=own).to(words.mean) * words.std + words.mean
            draw = lesson.task.generator(NAME, "points", lesson.target.name)
            total = 0.0
            for _ in range(POINTS * self.repeats):
                row = int(torch.randint(0, len(lesson.latents), (), generator=draw))
                for t in self._times(lesson.backbone, draw):
                    with torch.no_grad():
                        total += float(_fit(lesson, row, t, drawn, draw))
            if total < low:
                low, best = total, drawn.to(lesson.first)
            yield best

    def _times(self, backbone: Backbone, draw: torch.Generator) -> list[int]:
        """A timestep of each part, noisy ones first."""
        edges = [i * backbone.training_timesteps // self.bins for i in range(self.bins + 1)]
        parts = list(pairwise(edges))[::-1]
        return [int(torch.randint(low, high, (), generator=draw)) for low, high in parts]


class _Noised(NamedTuple):
    """An image at a timestep."""

    x: Float[Tensor, "1 c h w"]
    truth: Float[Tensor, "1 c h w"]
    """What the model should predict: the noise."""


def _noised(lesson: _Lesson, row: int, t: int, draw: torch.Generator) -> _Noised:
    x0 = lesson.latents[row : row + 1]
    noise = torch.randn(x0.shape, generator=draw).to(x0)
    time = torch.full((1,), t, device=x0.device)
    return _Noised(lesson.backbone.add_noise(x0, noise, time), lesson.backbone.truth(x0, noise, time))


def _fit(lesson: _Lesson, row: int, t: int, vector: Float[Tensor, "1 d"], draw: torch.Generator) -> Tensor:
    """How far the model, told the word, is from the noise that an image was given."""
    point = _noised(lesson, row, t, draw)
    cond = lesson.backbone.encode_learned([lesson.prompts[row]], WORD, vector)
    return mse(lesson.backbone.predict(point.x, t, cond), point.truth)


def _find(lesson: _Lesson, row: int, t: int, vector: Float[Tensor, "1 d"], draw: torch.Generator) -> Tensor:
    """How far what the model predicts for the word is from what it predicts for the neutral text."""
    point = _noised(lesson, row, t, draw)
    with torch.no_grad():
        cond = lesson.backbone.encode_learned([lesson.prompts[row]], WORD, vector)
        goal = lesson.backbone.predict(point.x, t, lesson.neutral)
    return mse(lesson.backbone.predict(point.x, t, cond), goal)


@torch.no_grad()
def _rehearsed(backbone: Backbone, names: Sequence[str]) -> Weights:
    """UCE's edit for the target's names (2308.14761, Eq. 7), on which candidates are tried."""
    phrases = erased([Concept(name=name) for name in names], ANCHOR, ("{}",), 1.0)
    pairs = paired(backbone, phrases, "all" if two_encoders(backbone) else "tail")
    changed = ridge_edit(backbone.tensors(backbone.text_inputs()), pairs.keys, pairs.goals, pairs.scales, PULL)
    if pooled := backbone.pooled_inputs():
        whole = paired_whole(backbone, phrases)
        changed |= ridge_edit(backbone.tensors(pooled), whole.keys, whole.goals, whole.scales, PULL)
    return backbone.edit_of(changed)
