"""Negative prompt: the concept takes the empty prompt's place in classifier-free guidance."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.conditioning import Conditioning
from expunge.core.eraser import Eraser, Step, Task
from expunge.core.guidance import Guidance
from expunge.core.knowledge import Kind
from expunge.core.texts import joined


@final
@dataclass(frozen=True, kw_only=True)
class NegativePromptGuidance(Guidance):
    """Condition the unconditional half on the words to avoid."""

    eraser = "negative-prompt"
    alone = True
    text: str

    @property
    @override
    def takes_null(self) -> bool:
        return True

    @override
    def conditioning(
        self, backbone: Backbone, cond: Conditioning, null: Conditioning, state: dict[str, Any]
    ) -> tuple[Conditioning, Conditioning]:
        if "negative-prompt" not in state:
            with torch.no_grad():
                state["negative-prompt"] = backbone.encode([self.text])
        return cond, state["negative-prompt"].expand(len(null.embeds))


@final
@dataclass(frozen=True, kw_only=True)
class NegativePrompt(Eraser):
    r"""Steer every image away from the concept's words at inference; the weights stay as they are.

    .. math:: \tilde\epsilon = \epsilon(x_t, c_e) + s (\epsilon(x_t, c) - \epsilon(x_t, c_e))

    A user option of the Stable Diffusion pipelines rather than a paper's method; methods.md A12.
    Ignores the retain list. Has no effect at guidance 1. Deviations: none known.
    """

    paper: ClassVar[Paper] = Paper("Negative prompt", "Stable Diffusion users", 2022, "")
    scales: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = True
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {}
    tuning: ClassVar[Sequence[str]] = ("separator",)
    separator: str = ", "
    """What stands between several targets."""

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        edit = NegativePromptGuidance(text=joined(backbone, [t.name for t in task.targets], self.separator))
        yield Step(index=0, edit=lambda: edit)
