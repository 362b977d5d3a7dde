"""A small recurrent policy that writes a sequence of choices, and REINFORCE with a critic for it."""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear, log_softmax


class Written(NamedTuple):
    """A sequence that a policy wrote."""

    choices: Int[Tensor, "k"]
    log_probs: Float[Tensor, "k"]
    """Of each choice, after those before it."""
    values: Float[Tensor, "k"]
    """The reward that the critic expects before each choice."""


class Losses(NamedTuple):
    """What descends the policy, and what teaches its critic."""

    actor: Float[Tensor, ""]
    critic: Float[Tensor, ""]


@final
class Policy:
    """An LSTM that draws each choice after those before it; every place has its own embedding, head and critic."""

    def __init__(
        self, places: int, choices: int, size: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> None:
        """A policy of so many ``places``, with random weights of the usual spread: layers by ``size``, embeddings normal."""

        def even(*shape: int) -> Tensor:
            return ((2 * torch.rand(shape, generator=generator, dtype=dtype) - 1) / size**0.5).requires_grad_()

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        self.places, self.size = places, size
        self._start = normal(1, size)  # what the first place reads; as the authors have it, it is not learned
        self._read = [normal(choices, size).requires_grad_() for _ in range(places - 1)]
        self._lstm = [even(4 * size, size), even(4 * size, size), even(4 * size), even(4 * size)]
        self._heads = [(even(choices, size), even(choices)) for _ in range(places)]
        self._critics = [(even(1, size), even(1)) for _ in range(places)]

    @property
    def parameters(self) -> list[Tensor]:
        """What is learned."""
        layers = [tensor for layer in (*self._heads, *self._critics) for tensor in layer]
        return [*self._read, *self._lstm, *layers]

    def drawn(self, generator: torch.Generator) -> Written:
        """A sequence drawn from the policy; differentiable in its parameters."""
        return self._walked(lambda _, logs: int(torch.multinomial(logs.exp(), 1, generator=generator)))

    def of(self, choices: Int[Tensor, "k"]) -> Written:
        """The sequence ``choices``, as if it had been drawn."""
        return self._walked(lambda place, _: int(choices[place]))

    def _walked(self, chosen: Callable[[int, Float[Tensor, "v"]], int]) -> Written:
        x = self._start
        hidden = cell = torch.zeros_like(x)
        choices, logs, values = list[int](), list[Tensor](), list[Tensor]()
        for place in range(self.places):
            hidden, cell = torch.lstm_cell(x, [hidden, cell], *self._lstm)
            log_probs = log_softmax(linear(hidden, *self._heads[place])[0], -1)
            choices.append(chosen(place, log_probs.detach()))
            logs.append(log_probs[choices[-1]])
            values.append(linear(hidden, *self._critics[place])[0, 0])
            if place < self.places - 1:
                x = self._read[place][choices[-1]][None]
        return Written(torch.tensor(choices), torch.stack(logs), torch.stack(values))


def reinforce(written: Written, reward: float) -> Losses:
    r"""REINFORCE for a reward that comes at the end and is not discounted, with the critic's values as baseline.

    .. math:: -\sum_k \log \pi(a_k \mid a_{<k}) \,\mathrm{sg}[R - V_k], \qquad \sum_k (R - V_k)^2
    """
    advantage = reward - written.values
    return Losses(-(written.log_probs * advantage.detach()).sum(), advantage.square().sum())
