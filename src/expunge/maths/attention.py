"""Cross-attention maps while a model runs: recordings of which tokens each place reads, and further texts for it to read."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float, Real
from torch import Tensor
from typing_extensions import override

from expunge.core.attention import AttentionHook, AttentionStep, attention_map
from expunge.core.backbone import Backbone
from expunge.core.errors import ExpungeError


@final
class Recording(AttentionHook):
    """Sums over a model's evaluations of its attention maps, by layer; see `recorded`."""

    def __init__(self, rows: int, columns: Sequence[int] | None) -> None:
        """Nothing is recorded yet."""
        self.rows = rows
        self.columns = None if columns is None else list(columns)
        self._sums: dict[str, Float[Tensor, "rows heads places columns"]] = {}
        self._evaluations: dict[str, int] = {}

    def maps(self) -> dict[str, Float[Tensor, "rows heads places columns"]]:
        """The mean map of each layer over all evaluations: image, head, place (row by row), token.

        Raises:
            ExpungeError: if the model has not run.
        """
        if not self._sums:
            raise ExpungeError("no attention was recorded: expected the model to run while it is recorded")
        return {name: total / self._evaluations[name] for name, total in self._sums.items()}

    @override
    def probabilities(self, probabilities: Float[Tensor, "b h q n"], step: AttentionStep) -> Float[Tensor, "b h q n"]:
        """Take the last rows of an evaluation in, which are those of the prompts where it is of guided pairs.

        Raises:
            ExpungeError: if it has fewer rows than are recorded, or other tokens than before.
        """
        layer, maps = step.layer, probabilities.detach()
        if len(maps) < self.rows:
            raise ExpungeError(f"an evaluation of {len(maps)} rows is recorded: expected {self.rows} or more")
        kept = maps[-self.rows :] if self.columns is None else maps[-self.rows :, :, :, self.columns]
        before = self._sums.get(layer)
        if before is not None and before.shape != kept.shape:
            raise ExpungeError(
                f"'{layer}' had maps of shape {tuple(before.shape)} and now has {tuple(kept.shape)}: "
                "expected images of one size, with the same injected prompt, in a recording"
            )
        self._sums[layer] = kept.clone() if before is None else before.add_(kept)
        self._evaluations[layer] = self._evaluations.get(layer, 0) + 1
        return probabilities


@contextmanager
def recorded(backbone: Backbone, rows: int, columns: Sequence[int] | None = None) -> Iterator[Recording]:
    """Record every cross-attention layer while the model runs inside: `Backbone.generate`, or `Backbone.predict`.

    ``rows`` images are generated at a time. Of a guided pair only the half with the prompt is kept. ``columns`` are the tokens
    whose maps are kept, all if not given; an injected prompt's stand after the text's. What edits make of the attention is what
    is recorded.

    Raises:
        ExpungeError: for a model without cross-attention.
    """
    recording = Recording(rows, columns)
    with backbone.attending(recording):
        yield recording


def columns_of(backbone: Backbone, prompt: str, word: str) -> list[int]:
    """Where the tokens of ``word`` stand in ``prompt``: the columns of an attention map that are its.

    Raises:
        ExpungeError: if the prompt does not name it.
    """
    ids = backbone.tokenize([prompt, word])
    text, part = (row[1:end].tolist() for row, end in zip(ids, backbone.end(ids).tolist(), strict=True))
    for start in range(len(text) - len(part) + 1):
        if part and text[start : start + len(part)] == part:
            return list(range(start + 1, start + 1 + len(part)))
    raise ExpungeError(f"the prompt '{prompt}' does not name '{word}': expected the word in it")


class ReadBeside(AttentionHook):
    r"""Has layers read words of another text beside the prompt: :math:`\mathrm{out} = M V(c) + \sum_j w_j M'_j V(c')_j`.

    .. math:: M' = \mathrm{softmax}(Q K(c')^T / \sqrt d)

    2408.01014; methods.md A14. Only rows with the prompt read them, at timesteps of ``earliest`` and above. A subclass says
    how much each word counts.
    """

    def __init__(self, text: Float[Tensor, "1 n d"], words: slice, earliest: float) -> None:
        """Read the tokens ``words`` of ``text``, the vectors of c'."""
        self.text, self.words, self.earliest = text, words, earliest
        self._asked: tuple[Tensor | None, bool] = (None, False)

    @abstractmethod
    def weighed(self, maps: Float[Tensor, "b h q w"], step: AttentionStep) -> Float[Tensor, "b h q w"]:
        """What a layer's maps M' of the words are multiplied to."""

    @override
    def beside(self, step: AttentionStep) -> Float[Tensor, "b h q d"] | None:
        if step.t is None or not self._acts(step.t):
            return None
        text = self.text.to(step.text).expand(len(step.queries), -1, -1)
        # M' of the same queries; M stands as it is
        weighed = self.weighed(attention_map(step.queries, step.project("k", text))[..., self.words], step)
        values = step.project("v", text)
        read = weighed.to(values) @ values[:, :, self.words]
        reads = torch.zeros(len(read), dtype=torch.bool, device=read.device)
        reads[step.prompted] = True
        reads &= step.t >= self.earliest
        return read * reads[:, None, None, None]

    def _acts(self, t: Real[Tensor, "b"]) -> bool:
        """Whether a row is early enough: asked once for all layers of an evaluation, since the answer waits for the device."""
        if self._asked[0] is not t:
            self._asked = (t, bool((t >= self.earliest).any()))
        return self._asked[1]
