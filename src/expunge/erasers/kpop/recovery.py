"""KPOP's key: the prompts of erased concepts, given to the texts that name them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone, Conditioning
from expunge.core.edit import Key
from expunge.core.errors import ExpungeError, unknown
from expunge.erasers.kpop.network import Network
from expunge.erasers.kpop.prompts import Halves, Place, check_place, injected, last_word, spoken, words_of


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Recovery(Key):
    """The key: gives a sanitised model a concept back by injecting its prompt wherever a text names the concept."""

    eraser = "kpop"
    alone = True
    prompts: Mapping[str, Float[Tensor, "*pair k d"]]
    """The learned prompt of each concept, or a pair for keys and for values."""
    network: Network | None = None
    """What makes them, where that was learned: it is stored in their place."""
    place: Place
    salt: str = field(repr=False)
    """The secret that training drew its random numbers with."""
    halves: Halves = "both"
    """Who reads a prompt, of a guided pair: both halves, or the one with the text."""
    only: str | None = None
    """Give every text the prompt of this concept, whatever it names."""

    def __post_init__(self) -> None:
        if self.place not in get_args(Place):
            raise unknown("place of a prompt", self.place, get_args(Place))
        if self.halves not in ("both", "text"):
            raise unknown("halves that read a prompt", self.halves, ["both", "text"])
        if self.only is not None and self.only not in self.prompts:
            raise unknown("concept of this key", self.only, self.prompts)

    @override
    def fields(self) -> dict[str, Any]:
        order = list(self.prompts)  # which a file of tensors does not keep
        reading = {"place": self.place, "halves": self.halves, "only": self.only, "concepts": order}
        network = {} if self.network is None else {"shape": list(self.network.shape)}
        return {"eraser": self.eraser, "salt": self.salt, **reading, **network}

    @override
    def tensors(self) -> dict[str, Tensor]:
        if self.network is None:
            return dict(self.prompts)
        weights = {f"network/{name}": weight for name, weight in self.network.weights.items()}
        return weights | {f"text/{name}": text.clone() for name, text in self.network.texts.items()}

    @override
    @classmethod
    def restore(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> "Recovery":
        rest = {name: value for name, value in fields.items() if name not in ("concepts", "shape")}
        if "shape" not in fields:
            return cls(prompts={name: tensors[name] for name in fields["concepts"]}, **rest)
        weights = {n.removeprefix("network/"): t for n, t in tensors.items() if n.startswith("network/")}
        texts = {name: tensors[f"text/{name}"] for name in fields["concepts"]}
        network = Network(weights=weights, texts=texts, shape=tuple(fields["shape"]))
        return cls(prompts=network.prompts(), network=network, **rest)

    @override
    def check(self, backbone: Backbone) -> None:
        check_place(backbone, self.place)

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
        return self._changed(replace(self, prompts=scaled, network=None))

    @override
    def rotated(self) -> "Recovery":
        names = list(self.prompts)
        if len(names) < 2:
            raise ExpungeError(f"the key holds the prompt of '{names[0]}' only: expected several to exchange")
        if all(torch.equal(p, self.prompts[names[0]]) for p in self.prompts.values()):
            raise ExpungeError(f"the key holds one prompt for {', '.join(names)}: expected several to exchange")
        following = {n: self.prompts[names[(i + 1) % len(names)]] for i, n in enumerate(names)}
        return self._changed(replace(self, prompts=following, network=None))

    def _changed(self, other: "Recovery") -> "Recovery":
        """``other``, which goes with the same edit as this one."""
        object.__setattr__(other, "requires", self.requires)
        return other

    @override
    def conditioning(
        self, backbone: Backbone, cond: Conditioning, null: Conditioning, state: dict[str, Any]
    ) -> tuple[Conditioning, Conditioning]:
        if "kpop" not in state:
            state["kpop"] = self._named(backbone, cond)
        which = torch.tensor([-1 if one is None else one.concept for one in state["kpop"]])
        which = which.to(cond.embeds.device)
        rows = which >= 0
        if not rows.any():
            return cond, null
        tokens = torch.stack(list(self.prompts.values())).to(cond.embeds)[which.clamp(min=0)]
        if self.place == "words":  # a part of the text, so the empty half has no place for them
            return self._said(backbone, cond, tokens, state), null
        empty = rows if self.halves == "both" else torch.zeros_like(rows)
        return injected(cond, tokens, self.place, rows), injected(null, tokens, self.place, empty)

    def _said(self, backbone: Backbone, cond: Conditioning, tokens: Tensor, state: dict[str, Any]) -> Conditioning:
        """``cond`` with each row that names a concept encoded anew, once a generation, its tokens among the words."""
        rows = [i for i, one in enumerate(state["kpop"]) if one is not None]
        if "kpop said" not in state:
            if cond.tokens is None:
                raise ExpungeError("an embedding has no words that a prompt could stand behind: expected a text")
            last = [one.last for one in state["kpop"] if one is not None]
            state["kpop said"] = spoken(backbone, cond.tokens[rows], tokens[rows], last)
        said: Conditioning = state["kpop said"]
        embeds = cond.embeds.clone()
        embeds[rows] = said.embeds.to(embeds)
        pooled = None if cond.pooled is None else cond.pooled.clone()
        if pooled is not None and said.pooled is not None:
            pooled[rows] = said.pooled.to(pooled)
        return replace(cond, embeds=embeds, pooled=pooled)

    def _named(self, backbone: Backbone, cond: Conditioning) -> list["Named | None"]:
        """For each row the concept that its text names (the longest, of several)."""
        names = list(self.prompts)
        only = None if self.only is None else names.index(self.only)
        if cond.tokens is None:
            if only is None:
                raise ExpungeError(
                    f"an embedding does not say which of {', '.join(names)} it names: expected a key for one concept "
                    "(`key.only_for(...)`)"
                )
            return [Named(only, 0) for _ in cond.embeds]
        words = words_of(backbone, names)
        longest = sorted(range(len(names)), key=lambda i: -len(words[i])) if only is None else [only]
        rows: list[Named | None] = []
        for text, end in zip(cond.tokens.tolist(), backbone.end(cond.tokens).tolist(), strict=True):
            ends = ((i, last_word(text, words[i])) for i in longest)
            named = next((Named(i, last) for i, last in ends if last is not None), None)
            rows.append(Named(only, end - 1) if named is None and only is not None else named)
        return rows


class Named(NamedTuple):
    """A concept that a text gets the prompt of."""

    concept: int
    last: int
    """Where its words end; the text, if it does not name it."""
