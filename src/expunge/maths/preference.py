"""Preference losses for denoisers: answer one image of a pair better than a reference model does, and the other worse."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

NoGrad = Literal["none", "ascent", "descent"]
"""Which side of a preference does not learn: neither, the unwanted image's, or the wanted one's."""


class Changes(NamedTuple):
    r"""How far a model's errors on the images of each pair are from the reference's, :math:`m_\theta - m_\phi`."""

    wanted: Float[Tensor, "b"]
    unwanted: Float[Tensor, "b"]

    def sided(self, no_grad: NoGrad) -> "Changes":
        """The same with one side held fixed."""
        return Changes(
            self.wanted.detach() if no_grad == "descent" else self.wanted,
            self.unwanted.detach() if no_grad == "ascent" else self.unwanted,
        )


def row_errors(predicted: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Mean squared error of each row."""
    return (predicted.float() - truth.float()).square().flatten(1).mean(1)


def dpo(changes: Changes, beta: float) -> Float[Tensor, ""]:
    r"""Diffusion-DPO as DUO's authors implement it, averaged over pairs.

    .. math:: -\log \sigma\big( -\beta (\Delta^+ - \Delta^-) \big)

    2311.12908, Eq. 14, with its T, its weight of the noise level and its half all in beta.
    """
    return -logsigmoid(-beta * (changes.wanted - changes.unwanted)).mean()


def kto(changes: Changes, beta: float) -> Float[Tensor, ""]:
    r"""DUO's KTO variant: each unwanted image against the mean over the batch of the wanted ones' changes.

    .. math:: -\log \sigma\big( -\beta (\overline{\Delta^+} - \Delta^-) \big)
    """
    return -logsigmoid(-beta * (torch.mean(changes.wanted) - changes.unwanted)).mean()
