"""Concept Semi-Permeable Membrane: one number's width of adapter a concept, which each prompt opens as far as it names it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.adapter import Adapter, Gate
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.knowledge import Kind
from expunge.core.texts import empty_is_unconditional
from expunge.maths.training import Decay, Learned, Optimizer, mse, numbers, pace, thin
from expunge.maths.trajectories import Points, Sampling


@final
class Transport(Gate):
    """Facilitated transport (2312.16145): a prompt opens a membrane as far as it is near the texts that name its concept."""

    def __init__(self, gates: Sequence[Sequence[str]]) -> None:
        """A gate for membranes of which each is opened by some texts; the nearest one counts.

        Raises:
            ExpungeError: if there is no membrane, or one has no text.
        """
        if not gates or any(not texts for texts in gates):
            raise ExpungeError("a gate of an adapter has no text: expected the words that open it")
        self.texts = tuple(tuple(texts) for texts in gates)

    @override
    def fields(self) -> dict[str, Any]:
        return {"gates": [list(texts) for texts in self.texts]}

    @override
    def opened(self, backbone: Backbone, cond: Conditioning) -> Float[Tensor, "b r"]:
        """How far the prompts of ``cond`` open each membrane.

        The larger of the cosine between the text's vectors (all of them, as one long vector) and the opening text's, and of the
        part of the opening text's tokens that stand in the prompt, small letters or not. Of texts that were padded to other
        lengths (T5's) those vectors are compared that both have.

        Raises:
            ExpungeError: if the conditioning did not come from prompts.
        """
        if cond.tokens is None:
            shown = " / ".join(self.texts[0])
            raise ExpungeError(
                f"the gate of '{shown}' reads the words of a prompt, and an embedding has none: expected a prompt that all "
                "text encoders read alike (or an adapter without gates)"
            )
        with torch.no_grad():
            texts = sorted({text for gate in self.texts for text in gate})
            known = backbone.encode(texts)
            nothing = backbone.tokenize([""])[0]
            small = backbone.tokenize([text.lower() for text in texts])  # T5 tells capitals apart
            spelled = backbone.spell(torch.where(cond.tokens < 0, nothing[-1], cond.tokens))
            said = torch.cat([cond.tokens, backbone.tokenize([text.lower() for text in spelled]).to(cond.tokens)], 1)
        length = min(cond.embeds.shape[1], known.embeds.shape[1])
        ours, theirs = (read[:, :length].flatten(1).float() for read in (cond.embeds, known.embeds))
        cosine = torch.cosine_similarity(ours[:, None], theirs[None], dim=-1)
        empty = set(nothing.tolist())
        words = [set(row) - empty for row in small.tolist()]
        rows = [set(row) for row in said.tolist()]
        shared = torch.tensor([[len(row & word) / max(1, len(word)) for word in words] for row in rows])
        near = torch.maximum(cosine, shared.to(cosine))
        return torch.stack([near[:, [texts.index(t) for t in gate]].amax(1) for gate in self.texts], 1)


@final
@dataclass(frozen=True, kw_only=True)
class SPM(Eraser):
    r"""Train a thin adapter that erases its concept, leave random texts as they were, and open it by how near a prompt is.

    .. math:: L = \big\| \epsilon_{\theta,M}(x_t, c) - [\epsilon_\theta(x_t, c_s)
        - \eta (\epsilon_\theta(x_t, c) - \epsilon_\theta(x_t, c_s))] \big\|^2
        + \lambda\, \mathbb{E}_{\tilde c} \big\| \epsilon_{\theta,M}(x_t, \tilde c) - \epsilon_\theta(x_t, \tilde c) \big\|^2

    2312.16145; methods.md A8. The adapter is :math:`y = W x + \gamma U (D x)`, of rank 1, beside every Linear and convolution
    layer of the transformer blocks; :math:`\tilde c` are latent anchors: random directions as long as the concept's own text,
    taken the likelier the less they resemble it. At inference :math:`\gamma` is each prompt's own (see `Transport`).
    Several targets get a membrane each, trained one after another, and add up. Ignores the retain list.
    Deviations: :math:`\gamma` scales the change once (the authors' code scales both matrices, so it acts squared and mixes
    membranes); points are labelled with their own timestep, and may be pure noise; on SDXL guidance along trajectories is not
    rescaled (by 0.7 in the authors' script for it); AdamW in 32 bits instead of 8; one size of image; anchors are random texts,
    where the authors' code takes the empty prompt for half of them (``empty_anchors=2``).
    """

    paper: ClassVar[Paper] = Paper(
        "One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications",
        "Lyu et al.",
        2024,
        "2312.16145",
        "https://github.com/Con6924/SPM",
    )
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {"surrogate": "anchor"}
    tuning: ClassVar[Sequence[str]] = ("negative_guidance", "anchors", "empty_anchors", "gated")
    surrogate: str = ""
    """What targets become when they name no anchor of their own, c_s."""
    negative_guidance: float = 1.0
    """How far beyond the surrogate it is guided away from the target, eta; 0 makes the surrogate the goal."""
    lamb: float = 1000.0
    """Weight of the latent anchors, lambda."""
    anchors: int = 4
    """Latent anchors at each point."""
    empty_anchors: int = 0
    """How many of them are the empty prompt instead."""
    gated: bool = True
    """Whether each prompt opens the membrane as far as it names the concept; else it is open to all."""
    lr: float = 1e-4
    """Learning rate."""
    optimizer: Optimizer = "adamw"
    """Adam with decoupled weight decay (0.01), without, or plain gradient descent."""
    decay: Decay = "cosine-restarts"
    """How the learning rate falls."""
    warmup: int = 500
    """Updates over which the learning rate rises."""
    cycles: int = 3
    """Restarts of the cosine, plus one."""
    iterations: int = 3000
    """Updates for each target."""
    batch: int = 1
    """Points an update."""
    sampling: Sampling = field(default_factory=lambda: Sampling(sampling_steps=30))

    def __post_init__(self) -> None:
        check_counts("spm", iterations=self.iterations, batch=self.batch, anchors=self.anchors, cycles=self.cycles)
        check_positive("spm", lr=self.lr, lamb=self.lamb)
        for name, value, most in (
            ("empty_anchors", self.empty_anchors, self.anchors),
            ("warmup", self.warmup, self.iterations - 1),
        ):
            if not 0 <= value <= most:
                raise ExpungeError(f"spm's {name} is {value}: expected 0 to {most}")

    @override
    def stronger(self, times: float) -> "SPM":
        return replace(self, iterations=counted(self.iterations, times), warmup=int(self.warmup * times))

    @override
    def check(self, backbone: Backbone) -> None:
        gated = next((edit for edit in backbone.edits if isinstance(edit, Adapter) and edit.gate is not None), None)
        if gated is not None:
            raise ExpungeError(
                f"spm on top of edit {gated.id}, whose gate reads the words of prompts, and spm's latent anchors have none: "
                "expected all targets in one erasure, or a model without gated adapters"
            )

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        done: list[dict[str, Tensor]] = []
        first, going = 0, resume
        if resume is not None:
            target, first = divmod(int(resume["next"]), self.iterations)
            done = [
                {n.removeprefix(f"done {i}/"): t for n, t in resume.items() if n.startswith(f"done {i}/")}
                for i in range(target)
            ]
        for number in range(len(done), len(task.targets)):
            membrane = _Membrane(self, backbone, task, number)
            yield from membrane.steps(first, going if first else None, done)
            done = [*done, membrane.student.values()]
            first, going = 0, None

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        points = self.iterations * self.batch
        points_and_goals = self.sampling.cost(points, 2, 1)
        each = points_and_goals + Cost(forward=points * self.anchors, trained=points * (1 + self.anchors))
        return Cost(forward=each.forward * targets, trained=each.trained * targets)


@final
class _Membrane:
    """The training of one target's adapter."""

    def __init__(self, method: SPM, backbone: Backbone, task: Task, number: int) -> None:
        self.method, self.backbone, self.task, self.number = method, backbone, task, number
        concept = task.targets[number]
        surrogate = method.surrogate if concept.anchor is None else concept.anchor
        with torch.no_grad():
            self.concept, self.surrogate = backbone.encode([concept.name]), backbone.encode([surrogate])
            self.null, empty = backbone.unconditional(), backbone.encode([""])
        self.near = self.concept.map(lambda t: t.cpu())  # where its latent anchors are drawn
        self.empty = replace(empty, tokens=None).map(lambda t: t.cpu())
        # whether a trajectory's own prediction is the surrogate's
        self.plain = not surrogate and empty_is_unconditional(backbone)
        start = thin(backbone, backbone.layers("transformer"), 1, task.generator("spm", concept.name))
        self.student = Learned(start, method.lr, method.optimizer)
        points = method.iterations * method.batch
        purpose = f"spm {concept.name}"
        self.source = method.sampling.source(backbone, self.concept, self.null, task, purpose, points)

    def steps(
        self, first: int, resume: Mapping[str, Tensor] | None, done: Sequence[Mapping[str, Tensor]]
    ) -> Iterator[Step]:
        method = self.method
        if resume is not None:
            self.student.load("membrane", resume)
        for index in range(first, method.iterations):
            with method.sampling.sampled_from(self.backbone.adapted(self.student.values())):
                points = self.source.draw(index, method.batch)
            losses = self._descend(index, points)
            yield Step(
                index=self.number * method.iterations + index,
                edit=lambda: self._edit([*done, self.student.values()]),
                losses=losses,
                state=lambda index=index: self._state(index, done),
            )

    def _descend(self, index: int, points: Points) -> dict[str, float]:
        method, ask = self.method, self.backbone.predict
        goal = self._goal(points)
        anchors = self._anchors(index, len(points.x))
        x, t = (part.repeat_interleave(method.anchors, 0) for part in (points.x, points.t))
        with torch.no_grad():
            kept = ask(x, t, anchors)
        with self.backbone.adapted(self.student.tensors()):
            erase = mse(ask(points.x, points.t, self.concept), goal)
            keep = mse(ask(x, t, anchors), kept)
            step = pace(method.decay, index, method.iterations, method.warmup, method.cycles)
            self.student.descend(erase + method.lamb * keep, step)
        return numbers({"erase": erase, "anchors": keep})

    @torch.no_grad()
    def _goal(self, points: Points) -> Float[Tensor, "b c h w"]:
        """The original's prediction for the surrogate, guided away from the target."""
        ask = self.backbone.predict
        target, base = points.cond, points.null if self.plain else None
        target = ask(points.x, points.t, self.concept) if target is None else target
        base = ask(points.x, points.t, self.surrogate) if base is None else base
        return base - self.method.negative_guidance * (target - base)

    def _anchors(self, index: int, points: int) -> Conditioning:
        """Latent anchors of an update, or the empty prompt in the place of the first ones of each point."""
        method = self.method
        generator = self.task.generator("spm anchors", self.number, index)
        rows: list[Conditioning] = []
        for _ in range(points):
            rows += [self.empty] * method.empty_anchors
            rows += [self._anchor(generator) for _ in range(method.anchors - method.empty_anchors)]
        return reduce(Conditioning.join, rows).map(lambda t: t.to(self.backbone.device))

    def _anchor(self, generator: torch.Generator) -> Conditioning:
        """A latent anchor in the place of everything that the model reads of a text."""
        concept = self.near
        embeds = latent_anchor(concept.embeds[0], generator)[None]
        pooled = None if concept.pooled is None else latent_anchor(concept.pooled[0], generator)[None]
        return replace(concept, embeds=embeds, pooled=pooled, tokens=None)

    def _edit(self, membranes: Sequence[Mapping[str, Tensor]]) -> Adapter:
        """All membranes so far, as the components of one adapter."""
        factors = {n: torch.cat([m[n] for m in membranes], 0 if n.endswith(".down") else 1) for n in membranes[0]}
        names = [t.name for t in self.task.targets[: len(membranes)]]
        gate = Transport([[name] for name in names]) if self.method.gated else None
        return self.backbone.adapter_of(factors, gate=gate)

    def _state(self, index: int, done: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        whole = [*done, self.student.values()] if index + 1 == self.method.iterations else done
        earlier = {f"done {i}/{n}": t for i, membrane in enumerate(whole) for n, t in membrane.items()}
        following = self.number * self.method.iterations + index + 1
        return {**earlier, **self.student.state("membrane"), "next": torch.tensor(following)}


def latent_anchor(concept: Float[Tensor, "*nd"], generator: torch.Generator) -> Float[Tensor, "*nd"]:
    """A random direction, 0.8 to 1.2 times as long as ``concept``, taken with probability 1 - cosine to it (Sec. 3.2)."""
    wanted = concept.float().cpu().flatten()
    while True:
        drawn = torch.randn(wanted.shape, generator=generator)
        cosine = torch.cosine_similarity(drawn, wanted, dim=0)
        if torch.rand((), generator=generator) < 1 - cosine:
            break
    length = (0.8 + 0.4 * torch.rand((), generator=generator)) * wanted.norm()
    return (drawn / drawn.norm() * length).view(concept.shape).to(concept)
