"""KPOP: a learnable prompt takes up the knowledge of a concept while the model is fine-tuned to forget it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone, Conditioning, InjectedPrompt
from expunge.core.catalog import Paper
from expunge.core.concept import phrases
from expunge.core.cost import Cost
from expunge.core.edit import Edit, Key
from expunge.core.eraser import Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_positive, unknown
from expunge.maths.training import Decay, Learned, Optimizer, mse, pace, trainable
from expunge.maths.trajectories import Points, Sampling

Place = Literal["mid", "mid-up", "down-mid-up", "text"]
Halves = Literal["both", "text"]
BLOCKS: dict[str, tuple[str, ...]] = {
    "mid": ("mid",),
    "mid-up": ("mid", "up"),
    "down-mid-up": ("down", "mid", "up"),
}
"""The layers that a concatenated prompt is read by, for each place; the other place adds it to the text."""


def injected(
    cond: Conditioning, tokens: Float[Tensor, "b k d"], place: Place, rows: Tensor | None = None
) -> Conditioning:
    """``cond`` with a prompt for each of its ``rows`` (all by default): Table 1 of the paper."""
    rows = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device) if rows is None else rows
    if place == "text":
        return replace(cond, embeds=cond.embeds + tokens.to(cond.embeds) * rows[:, None, None])  # (C + p) W
    return replace(cond, prompt=InjectedPrompt(tokens=tokens, rows=rows, blocks=BLOCKS[place]))  # [C ; p] W


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Recovery(Key):
    """The key: gives a sanitised model a concept back by injecting its prompt wherever a text names the concept."""

    eraser = "kpop"
    alone = True
    prompts: Mapping[str, Float[Tensor, "k d"]]
    """The learned prompt of each concept."""
    place: Place
    salt: str
    """The secret that training drew its random numbers with."""
    halves: Halves = "both"
    """Who reads a prompt, of a guided pair: both halves, or the one with the text."""
    only: str | None = None
    """Give every text the prompt of this concept, whatever it names."""

    def __post_init__(self) -> None:
        if self.place not in (*BLOCKS, "text"):
            raise unknown("place of a prompt", self.place, [*BLOCKS, "text"])
        if self.halves not in ("both", "text"):
            raise unknown("halves that read a prompt", self.halves, ["both", "text"])
        if self.only is not None and self.only not in self.prompts:
            raise unknown("concept of this key", self.only, self.prompts)

    @override
    def fields(self) -> dict[str, Any]:
        order = list(self.prompts)  # which a file of tensors does not keep
        told = {"place": self.place, "halves": self.halves, "only": self.only, "concepts": order}
        return {"eraser": self.eraser, "salt": self.salt, **told}

    @override
    def tensors(self) -> dict[str, Tensor]:
        return dict(self.prompts)

    @override
    @classmethod
    def restore(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> "Recovery":
        rest = {name: value for name, value in fields.items() if name != "concepts"}
        return cls(prompts={name: tensors[name] for name in fields["concepts"]}, **rest)

    @property
    @override
    def concepts(self) -> Sequence[str]:
        return list(self.prompts)

    @override
    def only_for(self, concept: str | None) -> "Recovery":
        return self._changed(replace(self, only=concept))

    @override
    def random(self, seed: int) -> "Recovery":
        generator = torch.Generator().manual_seed(seed)
        drawn = {name: torch.randn(p.shape, generator=generator) for name, p in self.prompts.items()}
        scaled = {n: (d * self.prompts[n].float().norm() / d.norm()).to(self.prompts[n]) for n, d in drawn.items()}
        return self._changed(replace(self, prompts=scaled))

    @override
    def rotated(self) -> "Recovery":
        names = list(self.prompts)
        if len(names) < 2:
            raise ExpungeError(f"the key holds the prompt of '{names[0]}' only: expected several to exchange")
        following = {n: self.prompts[names[(i + 1) % len(names)]] for i, n in enumerate(names)}
        return self._changed(replace(self, prompts=following))

    def _changed(self, other: "Recovery") -> "Recovery":
        """``other``, which goes with the same edit as this one."""
        object.__setattr__(other, "requires", self.requires)
        return other

    @override
    def conditioning(
        self, backbone: Backbone, cond: Conditioning, null: Conditioning, state: dict[str, Any]
    ) -> tuple[Conditioning, Conditioning]:
        if "kpop" not in state:
            state["kpop"] = self._named(backbone, cond).to(cond.embeds.device)
        which = state["kpop"]
        rows = which >= 0
        if not rows.any():
            return cond, null
        tokens = torch.stack(list(self.prompts.values())).to(cond.embeds)[which.clamp(min=0)]
        empty = rows if self.halves == "both" else torch.zeros_like(rows)
        return injected(cond, tokens, self.place, rows), injected(null, tokens, self.place, empty)

    def _named(self, backbone: Backbone, cond: Conditioning) -> Int[Tensor, "b"]:
        """For each row the concept that its text names (the longest, of several), or -1."""
        names = list(self.prompts)
        if self.only is not None:
            return torch.full((len(cond.embeds),), names.index(self.only))
        if cond.tokens is None:
            raise ExpungeError(
                f"an embedding does not say which of {', '.join(names)} it names: expected a key for one concept "
                "(`key.only_for(...)`)"
            )
        ids = backbone.tokenize(names)
        words = [row[1:end].tolist() for row, end in zip(ids, backbone.end(ids).tolist(), strict=True)]
        texts = cond.tokens.tolist()
        longest = sorted(range(len(names)), key=lambda i: -len(words[i]))
        return torch.tensor([next((i for i in longest if _contains(text, words[i])), -1) for text in texts])


def _contains(text: Sequence[int], words: Sequence[int]) -> bool:
    """Whether ``words`` stand in ``text``, in one piece."""
    return any(list(text[i : i + len(words)]) == list(words) for i in range(len(text) - len(words) + 1))


@final
@dataclass(frozen=True, kw_only=True)
class KPOP(Eraser):
    r"""Move a concept's knowledge into a private prompt, then out of the model: erased without the key, recovered with it.

    Each update first teaches the prompt p what the model still should know, then the model to forget it, two losses in turn:

    .. math:: L_T(p) = \big\| \epsilon_{\theta'}(x_t, c_e, p) - \epsilon_\theta(x_t, c_e) \big\|^2
    .. math:: L_R(\theta') = \big\| \epsilon_{\theta'}(x_t, c_e) - \epsilon_\theta(x_t, c_n) \big\|^2
        + \lambda \big\| \epsilon_{\theta'}(x_t, c_e, p) - \epsilon_\theta(x_t, c_e) \big\|^2

    Equations 5 to 7 of 2403.12326 v1/v2; methods.md A1, whose readings of what the paper leaves open are the defaults here.
    The prompts go to a key of their own; the edit does not hold them. With retained words it adds
    :math:`\lambda_r \| \epsilon_{\theta'}(x_t, c_r) - \epsilon_\theta(x_t, c_r) \|^2`, which the published figures very
    probably had and Eq. 7 does not show. ``retain_random`` is this project's own: texts of random tokens are kept as well, or
    instead, so that what nobody named stays although nobody is told its name.
    Deviations: squared norms are means over elements; prompts learn with Adam unless told ``sgd`` (Eq. 6 is plain gradient
    descent); one prompt a concept (v1/v2 write one for all). The paper has no public code to compare with.
    """

    paper: ClassVar[Paper] = Paper(
        "Hiding and Recovering Knowledge in Text-to-Image Diffusion Models via Learnable Prompts",
        "Bui et al.",
        2024,
        "2403.12326",
    )
    has_key: ClassVar[bool] = True
    requires: ClassVar[Sequence[str]] = ("cross-attention",)
    neutral: str = "a photo"
    """What targets become when they name no anchor of their own, c_n."""
    goal: Literal["neutral", "esd"] = "neutral"
    """What the model answers a target with: the neutral text's prediction, or ESD's guided away from the target."""
    lamb: float = 0.1
    """Weight of the term that keeps target and prompt together alive, lambda in Eq. 7."""
    keep: Literal["prompt", "frozen-prompt", "weights", "none"] = "prompt"
    """Ablation: that term as it is, with a random prompt that never learns, replaced by |theta' - theta|^2, or left out."""
    place: Place = "mid"
    """Where the prompt goes: after the text in the middle block's cross-attention, in more blocks, or added to the text."""
    k: int = 10
    """Tokens of a prompt that goes after the text (one that is added to the text has the text's length)."""
    halves: Halves = "both"
    """Who reads the prompt at recovery, of a guided pair: both halves, or the one with the text, as training did."""
    prompt_std: float = 1.0
    """Standard deviation of the random prompts that training begins with; 0 is for a prompt added to the text."""
    prompt_lr: float = 1e-5
    """Learning rate of the prompts."""
    prompt_steps: int = 1
    """Updates of the prompt before each one of the model."""
    prompt_optimizer: Optimizer = "adam"
    """Adam as for the model, or the plain gradient descent of Eq. 6."""
    retain_weight: float = 1.0
    """Weight of the term that keeps retained words, lambda_r; with neither words nor random texts there is no such term."""
    retain_points: Literal["target", "own"] = "target"
    """Where retained words are kept: at the targets' points, or at points on trajectories of their own."""
    retain_random: float = 0.0
    """Share of the retained points that keep a text of one to three random tokens; 1 or 0 without retained words."""
    templates: tuple[str, ...] = ("{}",)
    """Phrases that targets and retained words are put into; each point draws one."""
    group: str = "xattn"
    """Parameters that are trained: xattn, xattn-strict, noxattn (the paper's for nudity), full."""
    lr: float = 1e-5
    """Learning rate of Adam for the model."""
    decay: Decay = "none"
    """Whether both learning rates fall to zero on a straight line."""
    iterations: int = 1000
    """Updates."""
    batch: int = 1
    """Points an update."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_counts("kpop", iterations=self.iterations, batch=self.batch, k=self.k, prompt_steps=self.prompt_steps)
        if self.keep != "none" and not self.lamb > 0:
            raise ExpungeError(
                f"kpop's lamb is {self.lamb}: expected a positive number (to leave the term out, as an ablation: keep none)"
            )
        check_positive("kpop", lr=self.lr, prompt_lr=self.prompt_lr, retain_weight=self.retain_weight)
        if not (self.prompt_std > 0 or (self.prompt_std == 0 and self.place == "text")):
            raise ExpungeError(
                f"kpop's prompt_std is {self.prompt_std}: expected a positive number, or 0 for a prompt added to the text"
            )
        if not 0 <= self.retain_random <= 1:
            raise ExpungeError(f"kpop's retain_random is {self.retain_random}: expected a share, 0 to 1")
        if self.retain_random and self.retain_points == "own":
            raise ExpungeError(
                "kpop's retain_random with retain_points own: expected random texts at the targets' points"
            )
        phrases(self.templates, "")

    @property
    def prompted(self) -> bool:
        """Whether the second term of Eq. 7 has a prompt; an ablation without one leaves a key of random numbers."""
        return self.keep in ("prompt", "frozen-prompt")

    @override
    def check(self, backbone: Backbone) -> None:
        trainable(backbone, self.group)

    @override
    def stronger(self, times: float) -> "KPOP":
        return replace(self, iterations=counted(self.iterations, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        return _Run(self, backbone, task).steps(resume)

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        points = self.iterations * self.batch
        prompted = self.prompted
        known = {"neutral": 1, "esd": 2}[self.goal] + (prompted and self.goal == "neutral")
        ways = len(self.templates)
        total = self.sampling.cost(points, known, targets * ways)
        if self.sampling.arm == "bank" and self.goal == "neutral" and self.neutral:
            total += Cost(forward=points)
        total += Cost(trained=points * (1 + prompted + (self.prompt_steps if self.keep == "prompt" else 0)))
        if retain or self.retain_random:
            own = self.sampling.cost(points, 1, retain * ways) if self.retain_points == "own" else Cost(forward=points)
            total += own + Cost(trained=points)
        return total


class Frozen(NamedTuple):
    """What the original model predicts at an update's points."""

    target: Float[Tensor, "b c h w"] | None
    """For the target: what target and prompt together should still give. None where no prompt is kept."""
    goal: Float[Tensor, "b c h w"]
    """What the target should become."""


class Kept(NamedTuple):
    """Where retained words are kept at an update, and the original's predictions of them there."""

    points: Points
    cond: Conditioning
    expected: Float[Tensor, "b c h w"]


@final
class _Run:
    """One erasure: the model's texts, the student, the prompts and where points come from."""

    def __init__(self, method: KPOP, backbone: Backbone, task: Task) -> None:
        self.method, self.backbone, self.task = method, backbone, task
        if not task.retain and method.retain_random not in (0.0, 1.0):
            raise ExpungeError(
                f"kpop's retain_random is {method.retain_random} with no word to retain: expected 1 (random texts alone) or 0"
            )
        if task.retain and method.retain_random == 1.0:
            raise ExpungeError(
                "kpop's retain_random is 1 with words to retain, which it would never keep: expected less"
            )
        neutrals = [method.neutral if t.anchor is None else t.anchor for t in task.targets]
        ways = len(method.templates)
        with torch.no_grad():
            self.null = backbone.unconditional()
            self.targets = backbone.encode([p for t in task.targets for p in phrases(method.templates, t.name)])
            self.neutral = backbone.encode([n for n in neutrals for _ in range(ways)])
            self.empty = not any(neutrals)
            kept = [p for word in task.retain for p in phrases(method.templates, word)]
            self.retain = backbone.encode(kept) if kept else None
        self.ways = ways
        self.origin = backbone.tensors(trainable(backbone, method.group))
        self.student = Learned(self.origin, method.lr)
        self.start = self._random_prompts()
        self.prompts = Learned(self.start, method.prompt_lr, method.prompt_optimizer)
        points = method.iterations * method.batch
        self.source = method.sampling.source(backbone, self.targets, self.null, task, "kpop", points)
        self.retain_source = None
        if self.retain is not None and method.retain_points == "own":
            self.retain_source = method.sampling.source(backbone, self.retain, self.null, task, "kpop retain", points)

    def _random_prompts(self) -> dict[str, Float[Tensor, "k d"]]:
        length, width = self.targets.embeds.shape[1:]
        shape = (length if self.method.place == "text" else self.method.k, width)
        return {
            t.name: self.method.prompt_std
            * torch.randn(shape, generator=self.task.generator("prompt", t.name)).to(self.targets.embeds)
            for t in self.task.targets
        }

    def steps(self, resume: Mapping[str, Tensor] | None) -> Iterator[Step]:
        """Transfer, then remove, over and over."""
        first = 0
        if resume is not None:
            self.student.load("student", resume)
            self.prompts.load("prompt", resume)
            first = int(resume["next"])
        for index in range(first, self.method.iterations):
            with self.method.sampling.sampled_from(self._student()):
                points = self.source.draw(index, self.method.batch)
            frozen = self._frozen(points)
            losses: dict[str, float] = {}
            if frozen.target is not None and self.method.keep == "prompt":
                losses["transfer"] = self._transfer(index, points, frozen.target)
            losses |= self._remove(index, points, frozen, self._kept(index, points))
            yield Step(
                index=index,
                edit=lambda: self.backbone.edit_of(self.student.values()),
                losses=losses,
                state=lambda index=index: self._state(index + 1),
                key=self._key,
                warnings=self._warnings() if index + 1 == self.method.iterations else (),
            )

    @torch.no_grad()
    def _frozen(self, points: Points) -> Frozen:
        """The original's predictions; those that the trajectory left behind cost nothing."""
        ask, esd = self.backbone.predict, self.method.goal == "esd"
        e_c, goal = points.cond, points.null
        if e_c is None and (self.method.prompted or esd):
            e_c = ask(points.x, points.t, self.targets.rows(points.concept))
        if esd and goal is None:
            goal = ask(points.x, points.t, self.null)
        elif goal is None or not (esd or self.empty):
            goal = ask(points.x, points.t, self.neutral.rows(points.concept))
        if esd and e_c is not None:
            goal = goal - (e_c - goal)
        return Frozen(e_c if self.method.prompted else None, goal)

    def _student(self) -> AbstractContextManager[None]:
        """The model as far as it is trained."""
        return self.backbone.weights(self.student.values())

    def _pace(self, index: int) -> float:
        return pace(self.method.decay, index, self.method.iterations)

    def _tokens(self, points: Points, prompts: Mapping[str, Tensor]) -> Float[Tensor, "b k d"]:
        """The prompt of each point's concept."""
        names = [t.name for t in self.task.targets]
        return torch.stack([prompts[names[c // self.ways]] for c in points.concept.tolist()])

    def _transfer(self, index: int, points: Points, wanted: Tensor) -> float:
        """Eq. 5 and 6: the prompts learn, the student does not."""
        cond = self.targets.rows(points.concept)
        value = 0.0
        with self._student():
            for _ in range(self.method.prompt_steps):
                tokens = self._tokens(points, self.prompts.tensors())
                answer = self.backbone.predict(points.x, points.t, injected(cond, tokens, self.method.place))
                value = self.prompts.descend(mse(answer, wanted), self._pace(index))
        return value

    @torch.no_grad()
    def _kept(self, index: int, points: Points) -> Kept | None:
        """A retained word or a random text for each point, or points of the retained words' own."""
        if self.retain_source is not None and self.retain is not None:
            with self.method.sampling.sampled_from(self._student()):
                where = self.retain_source.draw(index, self.method.batch)
            cond = self.retain.rows(where.concept)
        else:
            cond, where = self._texts_to_keep(index, len(points.x)), points._replace(cond=None, null=None)
        if cond is None:
            return None
        return Kept(where, cond, self.backbone.predict(where.x, where.t, cond) if where.cond is None else where.cond)

    def _texts_to_keep(self, index: int, points: int) -> Conditioning | None:
        """For each point of an update a retained word or, for some, a random text; None if there is nothing to keep."""
        share, generator = self.method.retain_random, self.task.generator("retain", index)
        words = None
        if self.retain is not None:
            drawn = torch.randint(0, len(self.retain.embeds), (points,), generator=generator)
            words = self.retain.rows(drawn.to(self.backbone.device))
        if not share:
            return words
        random = self.backbone.encode(self.backbone.random_texts(points, generator))
        if words is None:
            return random
        chosen = (torch.rand(points, generator=generator) < share).to(self.backbone.device)
        return words.join(random).rows(torch.arange(points, device=chosen.device) + points * chosen)

    def _remove(self, index: int, points: Points, frozen: Frozen, kept: Kept | None) -> dict[str, float]:
        """Eq. 7, with the retain term if there is one: the student learns, the prompts do not."""
        method, ask = self.method, self.backbone.predict
        cond = self.targets.rows(points.concept)
        with self.backbone.weights(self.student.tensors()):
            terms = {"erase": mse(ask(points.x, points.t, cond), frozen.goal)}
            if frozen.target is not None:
                tokens = self._tokens(points, self.prompts.values())
                terms["keep"] = mse(ask(points.x, points.t, injected(cond, tokens, method.place)), frozen.target)
            elif method.keep == "weights":
                terms["keep"] = self.student.squared_distance(self.origin)
            if kept is not None:
                terms["retain"] = mse(ask(kept.points.x, kept.points.t, kept.cond), kept.expected)
            weights = {"erase": 1.0, "keep": method.lamb, "retain": method.retain_weight}
            loss = torch.stack([weights[n] * term for n, term in terms.items()]).sum()
            self.student.descend(loss, self._pace(index))
        return {name: float(term.detach()) for name, term in terms.items()}

    def _state(self, following: int) -> dict[str, Tensor]:
        return {**self.student.state("student"), **self.prompts.state("prompt"), "next": torch.tensor(following)}

    def _key(self, edit: Edit) -> Edit:
        prompts = {name: p.clone() for name, p in self.prompts.values().items()}
        key = Recovery(prompts=prompts, place=self.method.place, halves=self.method.halves, salt=self.task.salt)
        object.__setattr__(key, "requires", (*edit.requires, edit.id))
        return key

    def _warnings(self) -> list[str]:
        """Say which prompts hardly moved: then the key is noise."""
        if self.method.keep != "prompt":
            return []
        found: list[str] = []
        for name, p in self.prompts.values().items():
            start = self.start[name].float()
            moved = float((p.float() - start).norm() / max(start.norm(), p.float().norm()))
            if moved < 0.01:
                found.append(
                    f"the prompt of '{name}' moved by {100 * moved:.2g} % of its norm, so the key is little more than noise: "
                    "expected at least 1 % (a larger prompt_lr, or more iterations)"
                )
        return found
