"""KPOP's key: the prompts of erased concepts, given to the texts that name them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone, Conditioning
from expunge.core.edit import Key
from expunge.core.errors import ExpungeError, unknown
from expunge.erasers.kpop.prompts import BLOCKS, Halves, Place, injected


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Recovery(Key):
    """The key: gives a sanitised model a concept back by injecting its prompt wherever a text names the concept."""

    eraser = "kpop"
    alone = True
    prompts: Mapping[str, Float[Tensor, "*pair k d"]]
    """The learned prompt of each concept, or a pair for keys and for values."""
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
        if all(torch.equal(p, self.prompts[names[0]]) for p in self.prompts.values()):
            raise ExpungeError(f"the key holds one prompt for {', '.join(names)}: expected several to exchange")
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
