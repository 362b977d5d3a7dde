"""Cross-attention maps while a model runs: recordings of which tokens each place reads, and further texts for it to read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

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


def attended(step: AttentionStep, text: Float[Tensor, "1 n d"], words: slice) -> Float[Tensor, "b h q w"]:
    r"""How much of its attention a layer gives to tokens of another text, c': :math:`\mathrm{softmax}(Q K(c')^T / \sqrt d)`."""
    return attention_map(step.queries, step.project("k", _for_each_row(step, text)))[..., words]


def _for_each_row(step: AttentionStep, text: Float[Tensor, "1 n d"]) -> Float[Tensor, "b n d"]:
    return text.to(step.text).expand(len(step.queries), -1, -1)


@final
class ReadBeside(AttentionHook):
    r"""Has layers read words of another text beside the prompt: :math:`\mathrm{out} = M V(c) + \sum_j w_j M'_j V(c')_j`.

    2408.01014; methods.md A14. :math:`M'` is what `attended` gives. Only rows with the prompt read them, at timesteps of
    ``earliest`` and above.
    """

    def __init__(
        self, text: Float[Tensor, "1 n d"], words: slice, weights: Float[Tensor, "#b w"], earliest: float
    ) -> None:
        """Read the tokens ``words`` of ``text``, the vectors of c', with ``weights`` of all rows with the prompt or of each."""
        self.text, self.words, self.weights, self.earliest = text, words, weights, earliest
        self._asked: tuple[Tensor | None, bool] = (None, False)

    @override
    def beside(self, step: AttentionStep) -> Float[Tensor, "b h q d"] | None:
        if step.t is None or not self._acts(step.t):
            return None
        maps = attended(step, self.text, self.words)
        weights = maps.new_zeros((len(maps), maps.shape[-1]))
        weights[step.prompted] = self.weights.to(weights)
        weights *= (step.t >= self.earliest)[:, None]
        values = step.project("v", _for_each_row(step, self.text))[:, :, self.words]
        return (weights[:, None, None, :] * maps).to(values) @ values

    def _acts(self, t: Real[Tensor, "b"]) -> bool:
        """Whether a row is early enough: asked once for all layers of an evaluation, since the answer waits for the device."""
        if self._asked[0] is not t:
            self._asked = (t, bool((t >= self.earliest).any()))
        return self._asked[1]
