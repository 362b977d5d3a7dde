"""AdvUnlearn: ESD on the text encoder, against the prefix that still reaches the concept, with other prompts kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import COCO_OBJECTS, phrases, spans
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.knowledge import Kind
from expunge.core.texts import warn_of_t5
from expunge.maths.training import Decay, Learned, mse, numbers, pace
from expunge.maths.trajectories import Points, Sampling, Source

WORD = "<adv>"
"""What the adversarial vectors are called in a prompt."""


@final
class _Texts:
    """The prompts of an erasure, and what the original model reads in them."""

    def __init__(self, backbone: Backbone, targets: Sequence[str], kept: Sequence[str]) -> None:
        """Read them with the model as it stands."""
        with torch.no_grad():
            self.targets, self.kept = list(targets), list(kept)
            self.original = backbone.encode(self.targets)
            self.original_kept = backbone.encode(self.kept)
            self.null = backbone.unconditional()

    def attacked(self, backbone: Backbone, points: Points, vectors: Float[Tensor, "k d"]) -> Conditioning:
        """The points' targets behind the adversarial vectors, as the model reads them now."""
        prompts = [f"{WORD} {self.targets[which]}" for which in points.concept.tolist()]
        return backbone.encode_learned(prompts, WORD, vectors)

    def retained(self, backbone: Backbone, points: Points) -> Tensor:
        """How far kept prompts are answered otherwise than by the original, as a mean over elements."""
        wanted = _frozen(backbone, points, self.original_kept, points.cond)
        cond = backbone.encode([self.kept[which] for which in points.concept.tolist()])
        return mse(backbone.predict(points.x, points.t, cond), wanted)


@final
@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Eraser):
    r"""Teach the text encoder ESD's answer even to the prompt that is most like the original's, and keep other prompts.

    .. math:: \min_\phi \big\| \epsilon_{\phi}(x_t, c^*) - \big[\epsilon_0(x_t, \varnothing)
        - \eta (\epsilon_0(x_t, c) - \epsilon_0(x_t, \varnothing))\big] \big\|^2
        + \gamma \mathbb{E}_{\tilde c} \big\| \epsilon_\phi(x_t, \tilde c) - \epsilon_0(x_t, \tilde c) \big\|^2, \quad
        c^* = \arg\min_{c'} \big\| \epsilon_\phi(x_t, c') - \epsilon_0(x_t, c) \big\|^2

    Zhang et al. 2024 (2405.15234). :math:`c'` is the target behind ``tokens`` free token embeddings, which Adam moves for
    ``attack_steps`` updates before each update of the text encoder (after ``warmup`` ones without an attack). With
    ``attack_steps=1`` its update is the sign of the gradient: the paper's fast variant. The denoiser stays as it is. A word
    of ``--retain`` is kept beside those of ``kept``.
    The paper keeps by a second term, as here; the authors' code by an update of its own after each (``keeping="apart"``).
    Deviations: each point draws its own target and timestep (theirs has one target and one timestep an update); the paper
    lets a language model drop kept prompts that are near the concept, here those that hold the target's name are dropped;
    points follow the original's reading of a prompt, so that the arms online-student and online-frozen are one: the
    denoiser does not learn.
    """

    paper: ClassVar[Paper] = Paper(
        "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models",
        "Zhang et al.",
        2024,
        "2405.15234",
        "https://github.com/OPTML-Group/AdvUnlearn",
    )
    knows: ClassVar[Mapping[str, Kind]] = {"templates": "phrases", "kept": "retain", "kept_templates": "phrases"}
    tuning: ClassVar[Sequence[str]] = (
        *("negative_guidance", "tokens", "attack_steps", "attack_lr", "attack_every", "attack_batch", "initial"),
        *("keeping", "retain_weight", "retain_batch"),
    )
    group: str = "text-layers"
    """Parameters that are trained: text-layers, text-encoder, text-mlp, text-attn, text-last."""
    negative_guidance: float = 1.0
    """How far beyond the empty prompt the target is guided away, eta."""
    templates: tuple[str, ...] = ("{}",)
    """Phrases that targets are put into; each point draws one."""
    tokens: int = 1
    """Adversarial token embeddings before a prompt."""
    attack_steps: int = 30
    """Updates of these before an update of the text encoder; 0 trains without an attack."""
    attack_lr: float = 1e-3
    """Learning rate of their Adam, which begins anew in each attack."""
    attack_every: int = 1
    """Updates of the text encoder from one attack to the next."""
    attack_batch: int = 1
    """Points an update of an attack."""
    initial: Literal["latest", "random"] = "latest"
    """What an attack begins with: the embeddings that the last one found (the first: random words), or random words."""
    warmup: int = 200
    """Updates before the first attack; fewer than all."""
    kept: tuple[str, ...] = COCO_OBJECTS
    """Words that are kept beside those of the task, but for those that hold a target's name."""
    kept_templates: tuple[str, ...] = ("a photo of a {}",)
    """Phrases that kept words are put into."""
    keeping: Literal["term", "apart"] = "term"
    """Whether kept prompts are a term of the loss (the paper) or have an update of their own after it (the authors' code)."""
    retain_weight: float = 1.0
    """Weight of that term, gamma (1 is the authors' code's); 0 keeps nothing. Kept apart, prompts have weight 1."""
    retain_batch: int = 5
    """Kept prompts an update."""
    lr: float = 1e-5
    """Learning rate of Adam."""
    decay: Decay = "none"
    """Whether the learning rate falls to zero on a straight line."""
    iterations: int = 1000
    """Updates."""
    batch: int = 1
    """Points an update."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        counts = ("tokens", "attack_every", "attack_batch", "retain_batch", "iterations", "batch")
        check_counts("adv-unlearn", **{name: getattr(self, name) for name in counts})
        check_positive("adv-unlearn", lr=self.lr, attack_lr=self.attack_lr)
        if self.attack_steps < 0 or self.warmup < 0 or not self.retain_weight >= 0:
            raise ExpungeError(
                f"adv-unlearn's attack_steps {self.attack_steps}, warmup {self.warmup} and retain_weight {self.retain_weight}: "
                "expected none below 0"
            )
        if self.attack_steps and self.warmup >= self.iterations:
            raise ExpungeError(
                f"adv-unlearn's warmup {self.warmup} of {self.iterations} iterations leaves none to attack: expected fewer, or "
                "attack_steps 0"
            )
        phrases(self.templates, "")
        phrases(self.kept_templates, "")

    @override
    def check(self, backbone: Backbone) -> None:
        foreign = [n for n in backbone.group(self.group) if not n.startswith("text_encoder")]
        if foreign:
            raise ExpungeError(
                f"parameter group '{self.group}' holds '{foreign[0]}': expected a group of the text encoder, such as "
                "text-layers"
            )
        warn_of_t5(backbone, "adv-unlearn")

    @property
    @override
    def heeds_retain(self) -> bool:
        return self.retain_weight > 0

    @override
    def stronger(self, times: float) -> "AdvUnlearn":
        updates = counted(self.iterations, times)
        return replace(self, iterations=updates, warmup=self.warmup * updates // self.iterations)

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        texts = self._texts(backbone, task)
        student = Learned(backbone.tensors(backbone.group(self.group)), self.lr)
        erased, attacks = (
            self.sampling.source(backbone, texts.original, texts.null, task, f"adv-unlearn {purpose}", points)
            for purpose, points in (("erased", self.iterations * self.batch), ("attack", self._attack_points()))
        )
        points = self.iterations * self.retain_batch
        kept = self.sampling.source(backbone, texts.original_kept, texts.null, task, "adv-unlearn kept", points)
        vectors, first = None, 0
        if resume is not None:
            student.load("student", resume)
            vectors, first = resume.get("vectors"), int(resume["next"])
        for index in range(first, self.iterations):
            if self._attacks(index):
                vectors = self._attack(backbone, task, texts, student, attacks, index, vectors)
            yield self._update(backbone, texts, student, (erased, kept), index, vectors)

    def _texts(self, backbone: Backbone, task: Task) -> _Texts:
        """What is erased, and what is kept."""
        names = [target.name for target in task.targets]
        words = [*task.retain, *(word for word in self.kept if not any(spans(word, name) for name in names))]
        if self.retain_weight and not words:
            raise ExpungeError("adv-unlearn has no word to keep: expected some in kept or --retain, or retain_weight 0")
        targets = [p for t in task.targets for p in phrases(self.templates, t.name)]
        return _Texts(backbone, targets, [p for word in words for p in phrases(self.kept_templates, word)] or [""])

    def _attacks(self, index: int) -> bool:
        """Whether an attack comes before an update."""
        return self.attack_steps > 0 and index >= self.warmup and index % self.attack_every == 0

    def _attack_points(self) -> int:
        """Points of all attacks."""
        rounds = sum(self._attacks(index) for index in range(self.iterations))
        return rounds * self.attack_steps * self.attack_batch

    def _attack(
        self,
        backbone: Backbone,
        task: Task,
        texts: _Texts,
        student: Learned,
        source: Source,
        index: int,
        before: Float[Tensor, "k d"] | None,
    ) -> Float[Tensor, "k d"]:
        """The vectors with which the text encoder as it stands answers most as the original does."""
        if before is None or self.initial == "random":
            generator = task.generator("adv-unlearn vectors", index)
            ids = torch.randint(0, backbone.vocabulary, (1, self.tokens), generator=generator).to(backbone.device)
            with torch.no_grad():
                before = backbone.embed(ids)[0]
        attacker = Learned({WORD: before}, self.attack_lr)
        done = sum(self._attacks(earlier) for earlier in range(index)) * self.attack_steps
        with backbone.weights(student.values()):
            for number in range(done, done + self.attack_steps):
                with torch.no_grad():
                    points = source.draw(number, self.attack_batch)
                wanted = _frozen(backbone, points, texts.original, points.cond)
                cond = texts.attacked(backbone, points, attacker.tensors()[WORD])
                attacker.descend(mse(backbone.predict(points.x, points.t, cond), wanted))
        return attacker.values()[WORD]

    def _update(
        self,
        backbone: Backbone,
        texts: _Texts,
        student: Learned,
        sources: tuple[Source, Source],
        index: int,
        vectors: Float[Tensor, "k d"] | None,
    ) -> Step:
        """One update of the text encoder, or (where prompts are kept apart) two."""
        points, speed = sources[0].draw(index, self.batch), pace(self.decay, index, self.iterations)
        null = _frozen(backbone, points, texts.null, points.null)
        concept = _frozen(backbone, points, texts.original, points.cond)
        wanted = null - self.negative_guidance * (concept - null)
        kept = sources[1].draw(index, self.retain_batch) if self.retain_weight else None
        losses: dict[str, Tensor] = {}
        with backbone.weights(student.tensors()):
            if vectors is None:
                cond = backbone.encode([texts.targets[which] for which in points.concept.tolist()])
            else:
                cond = texts.attacked(backbone, points, vectors)
            loss = mse(backbone.predict(points.x, points.t, cond), wanted)
            losses["erase"] = loss
            if kept is not None and self.keeping == "term":
                retain = texts.retained(backbone, kept)
                losses["retain"] = retain
                loss = loss + self.retain_weight * retain
            student.descend(loss, speed)
        if kept is not None and self.keeping == "apart":
            with backbone.weights(student.tensors()):
                losses["retain"] = student.descend(texts.retained(backbone, kept), speed)
        found = {} if vectors is None else {"vectors": vectors}
        return Step(
            index=index,
            edit=lambda: backbone.edit_of(student.values()),
            losses=numbers(losses),
            state=lambda: {**student.state("student"), **found, "next": torch.tensor(index + 1)},
        )

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        rows = targets * len(self.templates)
        total = self.sampling.cost(self.iterations * self.batch, 2, rows) + Cost(trained=self.iterations * self.batch)
        if attacked := self._attack_points():
            total = total + self.sampling.cost(attacked, 1, rows) + Cost(trained=attacked)
        if self.retain_weight:
            points, words = self.iterations * self.retain_batch, (len(self.kept) + retain) * len(self.kept_templates)
            total = total + self.sampling.cost(points, 1, words) + Cost(trained=points)
        return total


@torch.no_grad()
def _frozen(
    backbone: Backbone, points: Points, texts: Conditioning, known: Float[Tensor, "b c h w"] | None
) -> Float[Tensor, "b c h w"]:
    """The original's predictions at points: what their trajectories left behind, or made now (its denoiser is the same)."""
    if known is not None:
        return known
    return backbone.predict(points.x, points.t, texts if len(texts.embeds) == 1 else texts.rows(points.concept))
