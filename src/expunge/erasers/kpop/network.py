"""KPOP's amortised prompt: a network that makes each concept's prompt from its text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

WIDTH = 128
"""Of its queries, however wide the text: at Stable Diffusion's size that makes 0.4 million numbers for ten tokens."""
HIDDEN = 256


def amortised(network: Mapping[str, Tensor], c: Float[Tensor, "b n d"]) -> Float[Tensor, "b q w"]:
    """The prompt f_phi(c): learned queries read the text by one cross-attention, and an MLP makes tokens of what they read."""
    phi = {name: weight.float() for name, weight in network.items()}
    text, queries = c.float(), phi["queries"]
    keys, values = text @ phi["key"].T, text @ phi["value"].T
    read = (queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[1])).softmax(-1) @ values
    hidden = torch.nn.functional.gelu((queries + read) @ phi["in"].T + phi["bias"])
    return (hidden @ phi["out"].T).to(c)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network with the texts that it reads: prompts by concept."""

    weights: Mapping[str, Tensor]
    texts: Mapping[str, Float[Tensor, "n d"]]
    """What the text encoder makes of each concept's name."""
    shape: tuple[int, ...]
    """Of one prompt."""

    def prompts(self) -> dict[str, Tensor]:
        """The prompt of each concept; differentiable in the weights."""
        prompts = amortised(self.weights, torch.stack(list(self.texts.values())))
        return dict(zip(self.texts, prompts.unflatten(1, self.shape[:-1]), strict=True))


def random_network(
    texts: Mapping[str, Tensor], shape: tuple[int, ...], std: float, generator: torch.Generator, like: Tensor
) -> Network:
    """A network whose prompts for ``texts`` have standard deviation ``std``; in the precision and place of ``like``."""
    wide, out = next(iter(texts.values())).shape[-1], shape[-1]
    sizes = {
        "queries": (math.prod(shape[:-1]), WIDTH),
        "key": (WIDTH, wide),
        "value": (WIDTH, wide),
        "in": (HIDDEN, WIDTH),
        "bias": (HIDDEN,),
        "out": (out, HIDDEN),
    }
    drawn = {name: torch.randn(size, generator=generator) / math.sqrt(size[-1]) for name, size in sizes.items()}
    drawn |= {"queries": drawn["queries"] * math.sqrt(WIDTH), "bias": torch.zeros(HIDDEN)}
    weights = {name: weight.to(like) for name, weight in drawn.items()}
    prompts = torch.stack(list(Network(weights=weights, texts=texts, shape=shape).prompts().values()))
    weights["out"] = weights["out"] * (std / float(prompts.float().std()))
    return Network(weights=weights, texts=texts, shape=shape)
