"""Cross-attention maps: which tokens each place of an image reads, and a recording of them while a model runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from expunge.core.backbone import Attention, Backbone
from expunge.core.errors import ExpungeError


def attention_map(
    queries: Float[Tensor, "b h q d"], keys: Float[Tensor, "b h n d"], bias: Float[Tensor, "#b #h #q n"] | None = None
) -> Float[Tensor, "b h q n"]:
    r"""How much of its attention each query gives to each key, in float32; rows sum to 1.

    .. math:: A = \mathrm{softmax}\big(Q K^T / \sqrt d\big)

    ``bias`` is added to the scores before the softmax: very negative where a key must not be read.
    """
    scores = queries.float() @ keys.float().transpose(-1, -2) / queries.shape[-1] ** 0.5
    return (scores if bias is None else scores + bias.float()).softmax(-1)


def heads_apart(projected: Float[Tensor, "b n hd"], heads: int) -> Float[Tensor, "b h n d"]:
    """What a projection gives, one row a head."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


@final
class Recording:
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

    def add(self, layer: str, found: Float[Tensor, "b heads places n"]) -> None:
        """Take the last rows of an evaluation in, which are those of the prompts where it is of guided pairs.

        Raises:
            ExpungeError: if it has fewer rows than are recorded, or other tokens than before.
        """
        if len(found) < self.rows:
            raise ExpungeError(f"an evaluation of {len(found)} rows is recorded: expected {self.rows} or more")
        kept = found[-self.rows :] if self.columns is None else found[-self.rows :, :, :, self.columns]
        before = self._sums.get(layer)
        if before is not None and before.shape != kept.shape:
            raise ExpungeError(
                f"'{layer}' had maps of shape {tuple(before.shape)} and now has {tuple(kept.shape)}: "
                "expected images of one size, with the same injected prompt, in a recording"
            )
        self._sums[layer] = kept.clone() if before is None else before.add_(kept)
        self._evaluations[layer] = self._evaluations.get(layer, 0) + 1


@contextmanager
def recorded(backbone: Backbone, rows: int, columns: Sequence[int] | None = None) -> Iterator[Recording]:
    """Record every cross-attention layer while the model runs inside: `Backbone.generate`, or `Backbone.predict`.

    ``rows`` images are generated at a time. Of a guided pair only the half with the prompt is kept. ``columns`` are the tokens
    whose maps are kept, all if not given; an injected prompt's stand after the text's. Hooks read what the layers' own
    projections give, so adapters must be attached before.

    Raises:
        ExpungeError: for a model without cross-attention.
    """
    if not backbone.supports("cross-attention"):
        raise ExpungeError(f"{backbone.name} ({backbone.family}) has no cross-attention to record: expected sd or sdxl")
    recording, handles = Recording(rows, columns), list[Any]()
    try:
        for name, layer in backbone.attentions().items():
            handles += _listening(backbone, name, layer, recording.add)
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _listening(backbone: Backbone, name: str, layer: Attention, told: Callable[[str, Tensor], None]) -> list[Any]:
    """Hooks on a layer: its projections are kept until it is done, when the bias that it was given is known, too."""
    heard: dict[str, Tensor] = {}

    def keep(part: str) -> Callable[[Any, Any, Tensor], None]:
        return lambda _, args, output: heard.__setitem__(part, output.detach())

    def done(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        queries, keys = (heads_apart(heard.pop(part), layer.heads) for part in ("q", "k"))
        bias = kwargs.get("attention_mask")
        told(name, attention_map(queries, keys, None if bias is None else bias[:, None]))

    owner = backbone.parameter(f"{name}.weight")[0]  # there is no such parameter: the layer itself would own it
    projections = {"q": backbone.parameter(layer.q)[0], "k": backbone.parameter(layer.k)[0]}
    hooks = [module.register_forward_hook(keep(part)) for part, module in projections.items()]
    return [*hooks, owner.register_forward_hook(done, with_kwargs=True)]


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
