"""Cross-attention: the anatomy of a layer, and hooks that look at its scores or change them while a model runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

from jaxtyping import Float, Real
from torch import Tensor

from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone


class Attention(NamedTuple):
    """One cross-attention layer: names of its four projections, and where it sits."""

    heads: int
    q: str
    k: str
    v: str
    out: str
    block: str
    """``down``, ``mid`` or ``up``."""


def attention_scores(
    queries: Float[Tensor, "b h q d"], keys: Float[Tensor, "b h n d"], bias: Float[Tensor, "#b #h #q n"] | None = None
) -> Float[Tensor, "b h q n"]:
    r"""How well each key fits each query, in float32: :math:`Q K^T / \sqrt d`.

    ``bias`` is added: very negative where a key must not be read.
    """
    scores = queries.float() @ keys.float().transpose(-1, -2) / queries.shape[-1] ** 0.5
    return scores if bias is None else scores + bias.float()


def attention_map(
    queries: Float[Tensor, "b h q d"], keys: Float[Tensor, "b h n d"], bias: Float[Tensor, "#b #h #q n"] | None = None
) -> Float[Tensor, "b h q n"]:
    r"""How much of its attention each query gives to each key, in float32; rows sum to 1.

    .. math:: A = \mathrm{softmax}\big(Q K^T / \sqrt d\big)
    """
    return attention_scores(queries, keys, bias).softmax(-1)


def heads_apart(projected: Float[Tensor, "b n hd"], heads: int) -> Float[Tensor, "b h n d"]:
    """What a projection gives, one row a head."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def _heads_together(apart: Float[Tensor, "b h n d"]) -> Float[Tensor, "b n hd"]:
    """The inverse of `heads_apart`: what the last projection reads."""
    return apart.transpose(1, 2).flatten(2)


@final
@dataclass(frozen=True, kw_only=True)
class AttentionStep:
    """One cross-attention layer in one evaluation of the denoiser: what an `AttentionHook` is told."""

    layer: str
    """Its name, as `Backbone.attentions` has it."""
    anatomy: Attention
    queries: Float[Tensor, "b h q d"]
    """Of the image: one for each place, row by row."""
    keys: Float[Tensor, "b h n d"]
    values: Float[Tensor, "b h n d"]
    text: Float[Tensor, "b m e"]
    """What the layer read: the text's vectors, and an injected prompt's after them."""
    t: Real[Tensor, "b"] | None
    """Timestep of each row; None in a call that is not ours, and that no edit steers."""
    index: int | None
    """Number of the denoising step, from 0; None outside of a generation."""
    prompted: slice
    """The rows that read the prompt: of a guided pair the half with it, else all."""
    project: Callable[[Literal["k", "v"], Tensor], Tensor] = field(repr=False)
    """The layer's keys (or values) of another text ``[b, n, e]``, heads apart: ``[b, h, n, d]``."""


class AttentionHook:
    """Looks at, or changes, the cross-attention of layers while a model runs; differentiable.

    A method that gives back the very tensor it was given changes nothing: the layer's own computation stands, bit for bit (and
    what is read `beside` is added to that).
    Under gradient checkpointing it is asked again on the way back.
    """

    def reads(self, layer: str, anatomy: Attention) -> bool:
        """Whether it wants to see this layer; all of them, unless told otherwise."""
        return True

    def scores(self, scores: Float[Tensor, "b h q n"], step: AttentionStep) -> Float[Tensor, "b h q n"]:
        """Change the scores before the softmax, which are in float32."""
        return scores

    def probabilities(self, probabilities: Float[Tensor, "b h q n"], step: AttentionStep) -> Float[Tensor, "b h q n"]:
        """Change what the softmax gave, in float32; rows need not sum to 1 afterwards."""
        return probabilities

    def beside(self, step: AttentionStep) -> Float[Tensor, "b h q d"] | None:
        """What the layer reads beside its text (values that are weighted and summed, heads apart); None for nothing."""
        return None


@final
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the layers of a model heed in one evaluation of the denoiser, beside its arguments."""

    t: Real[Tensor, "b"]
    """Timestep of each row."""
    index: int | None = None
    """Number of the denoising step, from 0; None outside of a generation."""
    prompted: slice = field(default_factory=lambda: slice(None))
    """The rows that read the prompt: of a guided pair the half with it, else all."""
    gates: dict[str, Float[Tensor, "each r"]] = field(default_factory=dict)
    """How far its rows open each adapter with a gate, by the adapter's id."""
    hooks: tuple[AttentionHook, ...] = ()
    """Hooks of the edits that are attached."""


@final
class AttentionHooks:
    """The hooks that a model's cross-attention heeds now, in order: each sees what those before it left."""

    def __init__(self, backbone: "Backbone") -> None:
        """No hook yet on ``backbone``, whose layers they will stand on."""
        self.backbone = backbone
        self.active: tuple[AttentionHook, ...] = ()
        self._handles: list[Any] = []

    @contextmanager
    def heeding(self, hooks: Sequence[AttentionHook]) -> Iterator[None]:
        """Heed these hooks alone inside.

        Raises:
            ExpungeError: for a model without cross-attention.
        """
        before = self.active
        try:
            self._put(tuple(hooks))
            yield
        finally:
            self._put(before)

    def renew(self) -> None:
        """Stand behind the hooks of adapters that have come since: what they add is a part of a projection."""
        active = self.active
        self._put(())
        self._put(active)

    def _put(self, hooks: tuple[AttentionHook, ...]) -> None:
        if len(hooks) == len(self.active) and all(a is b for a, b in zip(hooks, self.active, strict=True)):
            return
        for handle in self._handles:
            handle.remove()
        self._handles, self.active = [], hooks
        if not hooks:
            return
        check_reads_text(self.backbone)
        for name, anatomy in self.backbone.attentions().items():
            chosen = [hook for hook in hooks if hook.reads(name, anatomy)]
            if chosen:
                self._handles += _Layer(self.backbone, name, anatomy, chosen).handles()


def check_reads_text(backbone: "Backbone") -> None:
    """Refuse a model without cross-attention.

    Raises:
        ExpungeError: naming its family.
    """
    if not backbone.supports("cross-attention"):
        raise ExpungeError(f"{backbone.name} ({backbone.family}) has no cross-attention to record: expected sd or sdxl")


@final
class _Layer:
    """One layer with hooks: its projections are kept as they are computed, until what was read is known whole."""

    def __init__(self, backbone: "Backbone", name: str, anatomy: Attention, hooks: Sequence[AttentionHook]) -> None:
        self.backbone, self.name, self.anatomy, self.hooks = backbone, name, anatomy, hooks
        # there is no such parameter: the layer itself would own it
        self.module: Any = backbone.parameter(f"{name}.weight")[0]
        self.projected: dict[str, Tensor] = {}
        self.arguments: dict[str, Any] = {}
        self.asking = False
        """Whether a hook asks for the projections of another text."""

    def _projection(self, full: str) -> Any:
        """A projection as the layer calls it: with a LoRA of the user's, if it has one."""
        return self.module.get_submodule(full.removeprefix(f"{self.name}.").removesuffix(".weight"))

    def handles(self) -> list[Any]:
        """Hooks on the layer's modules."""
        parts = {part: getattr(self.anatomy, part) for part in ("q", "k", "v")}
        return [
            self.module.register_forward_pre_hook(self._begin, with_kwargs=True),
            *(self._projection(n).register_forward_hook(partial(self._keep, part)) for part, n in parts.items()),
            self._projection(self.anatomy.out).register_forward_pre_hook(self._end),
        ]

    def _begin(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.projected, self.arguments = {}, kwargs

    def _keep(self, part: str, _: Any, args: tuple[Any, ...], output: Tensor) -> None:
        if not self.asking:
            self.projected[part] = output

    def _end(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """What goes into the last projection, if a hook has changed it."""
        if set(self.projected) != {"q", "k", "v"}:
            raise ExpungeError(
                f"'{self.name}' does not call its projections (fuse_qkv_projections?): expected them apart where attention is "
                "looked at"
            )
        given = self.arguments["encoder_hidden_states"]
        text, *images = given if isinstance(given, tuple) else (given,)  # an IP-Adapter's images follow
        step, bias = self._step(text), self.arguments.get("attention_mask")
        self.projected, self.arguments = {}, {}
        own = attention_scores(step.queries, step.keys, None if bias is None else bias[:, None])
        probabilities, changed = self._asked(own, step)
        beside = [more for hook in self.hooks if (more := hook.beside(step)) is not None]
        if not changed and not beside:
            return None
        answer = args[0]  # of the layer's own computation, bit for bit where nothing changes its probabilities
        if changed:
            read = _heads_together(probabilities.to(step.values) @ step.values)
            # an IP-Adapter's images, whose attention was added to the text's, stay
            answer = answer + read - _heads_together(own.softmax(-1).to(step.values) @ step.values) if images else read
        for more in beside:
            answer = answer + _heads_together(more)
        return (answer, *args[1:])

    def _step(self, text: Tensor) -> AttentionStep:
        evaluation, heads = self.backbone.evaluation, self.anatomy.heads
        queries, keys, values = (heads_apart(self.projected[part], heads) for part in ("q", "k", "v"))
        return AttentionStep(
            layer=self.name,
            anatomy=self.anatomy,
            queries=queries,
            keys=keys,
            values=values,
            text=text,
            t=None if evaluation is None else evaluation.t,
            index=None if evaluation is None else evaluation.index,
            prompted=slice(None) if evaluation is None else evaluation.prompted,
            project=self._project,
        )

    def _asked(self, own: Tensor, step: AttentionStep) -> tuple[Tensor, bool]:
        """The probabilities that the hooks leave, and whether they are others than the layer's own."""
        scores = own
        for hook in self.hooks:
            scores = hook.scores(scores, step)
        first = probabilities = scores.softmax(-1)
        for hook in self.hooks:
            probabilities = hook.probabilities(probabilities, step)
        return probabilities, scores is not own or probabilities is not first

    def _project(self, part: Literal["k", "v"], text: Tensor) -> Tensor:
        before, self.asking = self.asking, True
        try:
            return heads_apart(self._projection(getattr(self.anatomy, part))(text), self.anatomy.heads)
        finally:
            self.asking = before
