"""Eq. 5 and 6 of KPOP: prompts learn to make the model answer for a concept as the original does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.concept import phrases
from expunge.core.conditioning import Conditioning
from expunge.core.edit import Edit
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.erasers.kpop.prompts import Prompts, injected, last_word, scale, spoken, words_of
from expunge.erasers.kpop.recovery import Recovery
from expunge.maths.training import Learned, mse, pace
from expunge.maths.trajectories import Points

if TYPE_CHECKING:
    from expunge.erasers.kpop import KPOP


@final
class Transfer:
    """The texts of the targets, and the prompts that learn beside them on whatever model the backbone is at the time."""

    def __init__(self, method: "KPOP", backbone: Backbone, task: Task) -> None:
        self.method, self.backbone, self.task = method, backbone, task
        self.ways = len(method.templates)
        names = [t.name for t in task.targets]
        self.texts = [p for name in names for p in phrases(method.templates, name)]
        with torch.no_grad():
            self.targets = backbone.encode(self.texts)
            read = backbone.encode(names).embeds
            self.last = _last_words(backbone, self.targets, names, self.ways) if method.place == "words" else []
            like = backbone.embed(backbone.tokenize([""])) if method.place == "words" else self.targets.embeds
        size = (self.targets.embeds.shape[1] if method.place == "text" else method.k, like.shape[2])
        pair = (2,) if method.prompt_values == "own" else ()
        self.prompts = Prompts(
            scope=method.prompt_scope, texts=dict(zip(names, read, strict=True)), shape=(*pair, *size)
        )
        std = method.prompt_std * (scale(backbone) if method.place == "words" else 1)
        self.start = self.prompts.start(std, task, like)
        self.learned = Learned(self.start, method.prompt_lr, method.prompt_optimizer)

    @torch.no_grad()
    def reread(self) -> None:
        """Read the targets' texts again, by the text encoder as it is now."""
        self.targets = self.backbone.encode(self.texts)

    def prompted(self, points: Points, learned: Mapping[str, Tensor]) -> Conditioning:
        """Each point's text with the prompt of its concept: what follows the predictor's ``c_e`` is ``c_e, p``."""
        prompts = list(self.prompts.of(learned).values())
        tokens = torch.stack([prompts[c // self.ways] for c in points.concept.tolist()])
        cond = self.targets.rows(points.concept)
        if cond.tokens is not None and self.last:
            return spoken(self.backbone, cond.tokens, tokens, [self.last[c] for c in points.concept.tolist()])
        return injected(cond, tokens, self.method.place)

    def learn(self, index: int, points: Points, wanted: Float[Tensor, "b c h w"]) -> Tensor:
        """Update the prompts against the model as it stands; returns the last loss."""
        value = torch.zeros(())
        for _ in range(self.method.prompt_steps):
            answer = self.backbone.predict(points.x, points.t, self.prompted(points, self.learned.tensors()))
            loss = mse(answer, wanted)  # Eq. 5
            value = self.learned.descend(loss, pace(self.method.decay, index, self.method.iterations))  # Eq. 6
        return value

    def key(self, requires: Sequence[str]) -> Recovery:
        """The prompts as they are now, for the model with the edits ``requires``."""
        learned = {name: value.clone() for name, value in self.learned.values().items()}
        key = Recovery(
            prompts={name: p.clone() for name, p in self.prompts.of(learned).items()},
            network=self.prompts.network(learned),
            place=self.method.place,
            halves=self.method.halves,
            salt=self.task.salt,
        )
        object.__setattr__(key, "requires", tuple(requires))
        return key

    def warnings(self) -> list[str]:
        """Say which prompts hardly moved: then the key is noise."""
        lines: list[str] = []
        first = self.prompts.of(self.start)
        for name, p in self.prompts.of(self.learned.values()).items():
            start = first[name].float()
            moved = float((p.float() - start).norm() / max(start.norm(), p.float().norm()))
            if moved < 0.01:
                lines.append(
                    f"the prompt of '{name}' moved by {100 * moved:.2g} % of its norm, so the key is little more than noise: "
                    "expected at least 1 % (a larger prompt_lr, or more iterations)"
                )
        return lines


def _last_words(backbone: Backbone, texts: Conditioning, names: Sequence[str], ways: int) -> list[int]:
    """Where the name of its concept ends in each text.

    Raises:
        ExpungeError: if a phrase changes a name's tokens, so that a text would not be known to name it.
    """
    words = words_of(backbone, names)
    rows = [] if texts.tokens is None else texts.tokens.tolist()
    positions = [last_word(row, words[i // ways]) for i, row in enumerate(rows)]
    missing = next((i for i, last in enumerate(positions) if last is None), None)
    if missing is not None:
        raise ExpungeError(
            f"a phrase hides the words '{names[missing // ways]}': expected templates with {{}} by itself"
        )
    return [last for last in positions if last is not None]


class Lesson(NamedTuple):
    """An update's points, and what the original model predicts there for their targets."""

    points: Points
    wanted: Float[Tensor, "b c h w"]


def fresh(method: "KPOP", backbone: Backbone, task: Task, edits: Sequence[Edit]) -> Recovery:
    """Prompts learned by Eq. 5 and 6 alone, on the model with ``edits``, which does not change.

    The original answers for the texts as it reads them, and the model with edits is asked with them as that reads them.
    """
    transfer = Transfer(method, backbone, task)
    lessons = list(_lessons(transfer))  # while the model is still the original, so that edits are switched once
    with backbone.attached(edits):
        transfer.reread()
        for index, (points, wanted) in enumerate(lessons):
            transfer.learn(index, points, wanted)
    return transfer.key([e.id for e in (*backbone.edits, *edits)])


@torch.no_grad()
def _lessons(transfer: Transfer) -> Iterator[Lesson]:
    method, backbone = transfer.method, transfer.backbone
    null = backbone.unconditional()
    total = method.iterations * method.batch
    source = method.sampling.source(backbone, transfer.targets, null, transfer.task, "fresh", total)
    for index in range(method.iterations):
        points = source.draw(index, method.batch)
        wanted = points.cond
        if wanted is None:
            wanted = backbone.predict(points.x, points.t, transfer.targets.rows(points.concept))
        yield Lesson(points._replace(cond=None, null=None), wanted)
