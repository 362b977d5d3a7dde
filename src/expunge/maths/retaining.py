"""Words that are kept while a model is trained: at an update's points they should be answered as the original answers them."""

from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.conditioning import Conditioning
from expunge.core.eraser import Task
from expunge.maths.training import mse
from expunge.maths.trajectories import Points


class Kept(NamedTuple):
    """Where words are kept at an update, and the original's predictions of them there."""

    points: Points
    cond: Conditioning
    expected: Float[Tensor, "b c h w"]


@final
class Retaining:
    """Draws, for each point of an update, one of the retained words or, for some, a text of random tokens."""

    def __init__(self, backbone: Backbone, task: Task, words: Conditioning | None, random: float = 0.0) -> None:
        """Keep the texts ``words``, if any, and random ones at a share ``random`` of the points."""
        self._backbone, self._task, self._words, self._random = backbone, task, words, random

    @torch.no_grad()
    def at(self, index: int, points: Points) -> Kept | None:
        """What update ``index`` keeps at ``points``; None if there is nothing to keep."""
        cond = self._texts(index, len(points.x))
        if cond is None:
            return None
        where = points._replace(cond=None, null=None)
        return Kept(where, cond, self._backbone.predict(where.x, where.t, cond))

    def _texts(self, index: int, points: int) -> Conditioning | None:
        generator, words = self._task.generator("retain", index), None
        if self._words is not None:
            drawn = torch.randint(0, len(self._words.embeds), (points,), generator=generator)
            words = self._words.rows(drawn.to(self._backbone.device))
        if not self._random:
            return words
        random = self._backbone.encode(self._backbone.random_texts(points, generator))
        if words is None:
            return random
        chosen = (torch.rand(points, generator=generator) < self._random).to(self._backbone.device)
        return words.join(random).rows(torch.arange(points, device=chosen.device) + points * chosen)


def retained(backbone: Backbone, kept: Kept) -> Tensor:
    r"""How far the model as it stands answers otherwise, as a mean over elements.

    .. math:: \big\| \epsilon_{\theta'}(x_t, c_r) - \epsilon_\theta(x_t, c_r) \big\|^2

    It is least where nothing has changed: alone, without a term that erases, it changes nothing.
    """
    return mse(backbone.predict(kept.points.x, kept.points.t, kept.cond), kept.expected)
