"""GIE: EIUP's erasure prompt, whose words count as much as a small network finds them in a first look at the image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from typing_extensions import override

from expunge.core.attention import AttentionHook, AttentionStep
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import phrases
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Step, Task
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.guidance import Guidance, of_words
from expunge.core.knowledge import Kind
from expunge.core.texts import joined, words_of
from expunge.maths.attention import ReadBeside, attended
from expunge.maths.training import Learned

Features = Literal["layers", "heads"]
WIDTHS = (64, 32, 1)
"""Of the network's layers [C]."""
FIRST = 7 / 8
"""Share of the timesteps above which samplers of eight steps or more begin: where the network learns."""
HELD_OUT = 5
"""Of so many images one is kept from the network, to see what it says to new ones."""


def word_weights(network: Mapping[str, Tensor], features: Float[Tensor, "b w f"]) -> Float[Tensor, "b w"]:
    """What a network says to each word's features; it has one set of tensors for all words, or one for each.

    Tensors: ``mean`` and ``spread`` ``[n, 1, f]`` of the features it learned from, ``weight.i`` ``[n, in, out]`` and ``bias.i``
    ``[n, 1, out]``, with n of 1 or w.
    """
    x = (features.transpose(0, 1) - network["mean"]) / network["spread"]
    for layer in range(len(WIDTHS)):
        x = (x if layer == 0 else x.relu()) @ network[f"weight.{layer}"] + network[f"bias.{layer}"]
    return x[..., 0].T


@final
class Looking(AttentionHook):
    """Takes down how much of its attention each layer gives to words of another text, on average; it changes nothing."""

    def __init__(self, text: Float[Tensor, "1 n d"], words: slice, features: Features) -> None:
        """Look at the tokens ``words`` of ``text``."""
        self.text, self.words, self.features = text, words, features
        self.seen: dict[str, Float[Tensor, "b w f"]] = {}
        """By layer."""

    @override
    def beside(self, step: AttentionStep) -> None:
        by_head = attended(step, self.text, self.words).mean(2).transpose(1, 2)
        self.seen[step.layer] = by_head if self.features == "heads" else by_head.mean(-1, keepdim=True)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Inhibited(Guidance):
    """Look at an image's first step; then have the half with the prompt read ``text`` beside it, as much as a network says."""

    eraser = "gie"
    text: str
    weight: float
    """What a word counts at most; no more is heeded of what the network says, nor anything of the other sign."""
    early: float
    features: Features
    width: int
    """Of the text vectors that the layers read."""
    network: Mapping[str, Tensor]
    """See `word_weights`."""

    @override
    def fields(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in ("text", "weight", "early", "features", "width")}
        return {"eraser": self.eraser, **told}

    @override
    def tensors(self) -> dict[str, Tensor]:
        return dict(self.network)

    @override
    @classmethod
    def restore(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> "Inhibited":
        return cls(**fields, network=tensors)

    @override
    def check(self, backbone: Backbone) -> None:
        networks, _, given = self.network["mean"].shape
        words, expected = words_of(backbone, self.text), _count(backbone, self.features)
        width = _vectors(backbone, self.text).shape[-1]
        if given != expected or networks not in (1, words.stop - words.start) or self.width != width:
            raise ExpungeError(
                f"edit {self.id} has {networks} networks that are told {given} numbers, of text vectors of {self.width}: "
                f"expected 1 or {words.stop - words.start}, {expected} and {width} for {backbone.name}"
            )

    @override
    def look(
        self, backbone: Backbone, x: Float[Tensor, "b *chw"], t: int | float, cond: Conditioning, state: dict[str, Any]
    ) -> None:
        hooks = of_words(state)  # another prompt, another look
        earliest = (1 - self.early) * backbone.training_timesteps
        if self.id in hooks or t < earliest:
            return
        vectors, words = _vectors(backbone, self.text), words_of(backbone, self.text)
        found = _seen(backbone, Looking(vectors, words, self.features), x, t, cond)
        said = word_weights({name: tensor.to(found) for name, tensor in self.network.items()}, found)
        weights = said.clamp(min(0.0, self.weight), max(0.0, self.weight))
        hooks[self.id] = ReadBeside(vectors, words, weights, earliest)

    @override
    def attention(self, backbone: Backbone, state: dict[str, Any]) -> AttentionHook | None:
        return of_words(state).get(self.id)


@torch.no_grad()
def _vectors(backbone: Backbone, text: str) -> Float[Tensor, "1 n d"]:
    """What the layers read of a text."""
    return backbone.encode([text]).embeds


def _count(backbone: Backbone, features: Features) -> int:
    """How many numbers the layers of a model show of a word."""
    return sum(1 if features == "layers" else layer.heads for layer in backbone.attentions().values())


@torch.no_grad()
def _seen(
    backbone: Backbone,
    looking: Looking,
    x: Float[Tensor, "b *chw"],
    t: int | float | Real[Tensor, "b"],
    cond: Conditioning,
) -> Float[Tensor, "b w f"]:
    """What the layers, in their order, show ``looking`` in one evaluation, at which nobody else looks; in float32."""
    with backbone.attention.heeding([looking]):
        backbone.predict(x, t, cond)
    return torch.cat([looking.seen[layer] for layer in backbone.attentions()], -1)


@final
@dataclass(frozen=True, kw_only=True)
class GIE(Eraser):
    r"""Take the concept out of each layer's cross-attention as much as a small network sees it in a first look at the image.

    .. math:: \mathrm{out} = M V(c) + \sum_{j \in c'} w_j M'_j V(c')_j,\qquad
        w_j = \mathrm{MLP}\big([\overline{M'_{\ell, j}}]_\ell\big)

    2408.01014v2 (ICLR 2025); methods.md A14. As `eiup`, but for w: before an image's first step one evaluation more, of the
    half with the prompt, tells the mean attention of each layer to each word of the erasure prompt c'. From that follows how
    much the word counts in all steps. The network (f, 64, 32, 1) is the same for all words.

    How the authors train it could not be found (their code applies a trained one, and imports what a regression needs). Here it
    learns by least squares to say ``weight`` where a text names a target, and else 0, from one evaluation of pure noise for
    each of many texts: half of them name targets, half are retained words and random texts. Standardised features. What
    ``weight`` is good must be searched.
    Deviations: those of `eiup`. The look is one plain evaluation, where theirs is a guided step of two branches in which the
    words are read with weight 1. The network learns at the noisiest eighth of the timesteps, from labels of two values, on
    standardised features of all layers (their code can take layers 5 to 9 alone); what it says is cut at 0 and ``weight``.
    ``features="heads"`` and ``networks="each"`` (more numbers, and a network for each word) are this project's.
    """

    paper: ClassVar[Paper] = Paper(
        "Growth Inhibitors for Suppressing Inappropriate Image Concepts in Diffusion Models",
        "Chen et al.",
        2025,
        "2408.01014v2",
        "https://github.com/CD22104/Growth-Inhibitors-for-Erasure",
    )
    scales: ClassVar[bool] = False
    requires: ClassVar[Sequence[str]] = ("cross-attention",)
    knows: ClassVar[Mapping[str, Kind]] = {"templates": "phrases", "random": "random_texts"}
    tuning: ClassVar[Sequence[str]] = (
        *("weight", "inhibits", "early", "separator", "features", "networks", "images", "updates"),
    )
    weight: float = -3.0
    """What words count where a prompt names a target. No published value: to be searched."""
    inhibits: Literal["all", "target"] = "all"
    """Which words that is where there are several targets: all, as with `eiup`, or those of the one that is named."""
    early: float = 0.8
    """Share of the timesteps, the noisy ones, in which they are read."""
    separator: str = " "
    """What stands between several targets."""
    templates: tuple[str, ...] = ("{}", "a photo of {}", "an image of {}")
    """Phrases that targets and retained words are put into."""
    random: float = 0.5
    """Share of random texts among what is no target, of which the rest are retained words; without these all are random (at 0:
    empty)."""
    images: int = 60
    """Evaluations for each target, and as many for other things; a fifth of 5 or more is held out, to see what was learned."""
    features: Features = "layers"
    """What is told of a word: the mean attention of each layer, or of each head."""
    networks: Literal["shared", "each"] = "shared"
    """Whether all words share a network, or each has one."""
    updates: int = 1000
    """Updates of the network, with all images in each; they cost no evaluation."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    batch: int = 10
    """Evaluations at a time: those draw their timesteps and texts from one stream, so another number is another edit."""

    def __post_init__(self) -> None:
        check_counts("gie", images=self.images, updates=self.updates, batch=self.batch)
        check_positive("gie", lr=self.lr)
        phrases(self.templates, "")
        if self.weight == 0 or not 0 < self.early <= 1 or not 0 <= self.random <= 1:
            raise ExpungeError(
                f"gie's weight {self.weight}, early {self.early} and random {self.random}: expected a weight other than zero, "
                "and shares of 1 at most, early above 0"
            )

    @property
    @override
    def heeds_retain(self) -> bool:
        return self.random < 1

    @override
    def stronger(self, times: float) -> "GIE":
        return replace(self, weight=self.weight * times)

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        learning = _Learning(self, backbone, task)
        if resume is not None:
            learning.found, learning.named = [resume["found"]], [resume["named"]]
        begun = sum(map(len, learning.found))
        for first in range(begun, learning.total, self.batch):
            learning.look(range(first, min(first + self.batch, learning.total)))
            yield Step(index=first // self.batch, edit=learning.edit, state=learning.state, warnings=learning.warnings)

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        return Cost(forward=2 * self.images * targets)


@final
class _Learning:
    """First looks at targets and at other things, in turn, and what a network learns from them."""

    def __init__(self, method: GIE, backbone: Backbone, task: Task) -> None:
        self.method, self.backbone, self.task = method, backbone, task
        names = [target.name for target in task.targets]
        self.text = joined(backbone, names, method.separator)
        self.vectors, self.words = _vectors(backbone, self.text), words_of(backbone, self.text)
        ends = [words_of(backbone, method.separator.join(names[: i + 1])).stop for i in range(len(names))]
        counts = [end - start for start, end in pairwise([self.words.start, *ends])]
        self.owner = torch.arange(len(names)).repeat_interleave(torch.tensor(counts))
        """The target that each word belongs to."""
        self.total = 2 * method.images * len(names)
        self.found: list[Float[Tensor, "b w f"]] = []
        self.named: list[Bool[Tensor, "b w"]] = []
        """Which words are to count in each image."""
        self.fitted: tuple[int, dict[str, Tensor]] = (0, {})
        """The network, and from how many batches."""

    def state(self) -> dict[str, Tensor]:
        """All that was seen."""
        return {"found": torch.cat(self.found), "named": torch.cat(self.named)}

    @torch.no_grad()
    def look(self, images: range) -> None:
        """Have a first look at some images, and keep what the layers show."""
        backbone, generator = self.backbone, self.task.generator("gie", images.start)
        # even ones show a target, which takes turns; odd ones show something else
        asked = [i // 2 % len(self.task.targets) if i % 2 == 0 else None for i in images]
        x = torch.cat([backbone.noise(self.task.number("gie noise", i)) for i in images])
        steps = backbone.training_timesteps
        t = torch.randint(int(FIRST * steps), steps, (len(images),), generator=generator).to(x.device)
        told = self._told(asked, generator)
        looking = Looking(self.vectors, self.words, self.method.features)
        self.found.append(_seen(backbone, looking, x, t, told).cpu())
        own = torch.stack([self.owner == (-1 if target is None else target) for target in asked])
        self.named.append(own.any(1, keepdim=True).expand_as(own) if self.method.inhibits == "all" else own)

    def _told(self, asked: Sequence[int | None], generator: torch.Generator) -> Conditioning:
        """The texts of some images: of the target with that number, or of something else."""
        told = [
            self._other(generator) if i is None else self._phrase(self.task.targets[i].name, generator) for i in asked
        ]
        return reduce(Conditioning.join, [self.backbone.encode(text) for text in told])

    def _phrase(self, word: str, generator: torch.Generator) -> list[str]:
        """A word in one of the templates."""
        at = int(torch.randint(0, len(self.method.templates), (1,), generator=generator))
        return phrases(self.method.templates, word)[at : at + 1]

    def _other(self, generator: torch.Generator) -> list[str] | Int[Tensor, "1 n"]:
        """A retained word, or a random text; the empty one where there is neither."""
        kept, random = self.task.retain, self.method.random
        if random and (not kept or float(torch.rand(1, generator=generator)) < random):
            return self.backbone.random_texts(1, generator)
        return (
            self._phrase(kept[int(torch.randint(0, len(kept), (1,), generator=generator))], generator) if kept else [""]
        )

    # the network ------------------------------------------------------------------------------------------------------
    def edit(self) -> Inhibited:
        """What is learned from the images so far."""
        method, width = self.method, self.vectors.shape[-1]
        told = {"text": self.text, "weight": method.weight, "early": method.early, "features": method.features}
        return Inhibited(**told, width=width, network=self._network())

    def _network(self) -> dict[str, Tensor]:
        """A network that was fitted to all images but those that are held out."""
        if self.fitted[0] == len(self.found):
            return self.fitted[1]
        found, named = (tensor[~self._held_out()] for tensor in self.state().values())
        goal = self.method.weight * named.float()
        network = self._first(found)
        learned = Learned({name: network[name] for name in network if "." in name}, self.method.lr)
        with torch.enable_grad():
            for _ in range(self.method.updates):
                learned.descend((word_weights({**network, **learned.tensors()}, found) - goal).square().mean())
        self.fitted = (len(self.found), {**network, **learned.values()})
        return self.fitted[1]

    def _first(self, found: Float[Tensor, "b w f"]) -> dict[str, Tensor]:
        """A random network: normal weights of a spread of one by the square root of their inputs, and no biases."""
        each = found.shape[1] if self.method.networks == "each" else 1
        told = found.transpose(0, 1) if each > 1 else found.flatten(0, 1)[None]
        network = {"mean": told.mean(1, keepdim=True), "spread": told.std(1, keepdim=True).clamp(min=1e-6)}
        generator, taken = self.task.generator("gie network"), found.shape[2]
        for layer, given in enumerate(WIDTHS):
            network[f"weight.{layer}"] = torch.randn((each, taken, given), generator=generator) / taken**0.5
            network[f"bias.{layer}"] = torch.zeros(each, 1, given)
            taken = given
        return network

    def _held_out(self) -> Bool[Tensor, "b"]:
        """Every fifth image of each target, and as many of something else."""
        seen = torch.arange(sum(map(len, self.found)))
        return seen // (2 * len(self.task.targets)) % HELD_OUT == HELD_OUT - 1

    def warnings(self) -> list[str]:
        """What the network says to images that it did not learn from, where it hardly tells a target."""
        held = self._held_out()
        if not held.any():
            return []
        found, named = (tensor[held] for tensor in self.state().values())
        said = word_weights(self._network(), found)
        told, others = float(said[named].mean()), float(said[~named].mean())
        if (told - others) / self.method.weight >= 0.5:
            return []
        better = (self.method.features, self.method.networks) == ("heads", "each")
        advice = "more images may help" if better else "features heads and networks each tell it more"
        return [
            f"gie's network says {told:.2g} on average where a text names a target, and {others:.2g} elsewhere: expected "
            f"{self.method.weight:g} and 0; {advice}"
        ]
