"""One model family: text, denoising, latents, anatomy, and the stack of edits that it carries."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from torch import Tensor

from expunge.core.adapter import Adapter, as_layers
from expunge.core.cost import Cost
from expunge.core.edit import Edit, Guidance, GuidedStep, Weights, fingerprints, strengths
from expunge.core.errors import ExpungeError
from expunge.core.query import LearnedWord, Query
from expunge.core.stack import Stack

FILLER = "a"
"""A word that is one token in every vocabulary of the CLIP kind."""


@final
@dataclass(frozen=True, kw_only=True)
class InjectedPrompt:
    """Learned tokens that some cross-attention layers read after the text's own; the layers' own matrices project them."""

    tokens: Float[Tensor, "b k d"]
    values: Float[Tensor, "b k d"] | None = None
    """What the projections of values read in the place of ``tokens``, if not the same."""
    rows: Bool[Tensor, "b"]
    """Rows that read them; the others attend to the text alone."""
    blocks: tuple[str, ...]
    """Which layers: any of ``down``, ``mid``, ``up``."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "InjectedPrompt":
        """Apply ``change`` to every tensor."""
        values = None if self.values is None else change(self.values)
        return replace(self, tokens=change(self.tokens), values=values, rows=change(self.rows))


@final
@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What the denoiser is told, one row an image."""

    embeds: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"] | None = None
    mask: Tensor | None = None
    tokens: Int[Tensor, "b m"] | None = None
    """Token ids, where the conditioning came from a prompt."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    prompt: InjectedPrompt | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply ``change`` to every tensor."""
        return Conditioning(
            embeds=change(self.embeds),
            pooled=None if self.pooled is None else change(self.pooled),
            mask=None if self.mask is None else change(self.mask),
            tokens=None if self.tokens is None else change(self.tokens),
            extra={k: change(v) for k, v in self.extra.items()},
            prompt=None if self.prompt is None else self.prompt.map(change),
        )

    def expand(self, rows: int) -> "Conditioning":
        """One row repeated ``rows`` times; a batch of that size is returned as it is."""
        return self if len(self.embeds) == rows else self.map(lambda t: t.expand(rows, *t.shape[1:]))

    def join(self, other: "Conditioning") -> "Conditioning":
        """Rows of ``self``, then rows of ``other``; tokens are kept only if both have them.

        Raises:
            ExpungeError: if only one of the two has an injected prompt.
        """
        halves = (self.prompt, other.prompt)
        if len({(p is None, p is not None and p.values is None) for p in halves}) > 1:
            raise ExpungeError(
                "one half of a guided pair has an injected prompt, or its values: expected both or neither"
            )
        keep = self.tokens is not None and other.tokens is not None
        first, last = (c if keep else replace(c, tokens=None) for c in (self, other))
        second = iter(_tensors(last))
        return first.map(lambda t: torch.cat([t, next(second)]))

    def rows(self, index: Int[Tensor, "b"]) -> "Conditioning":
        """The rows ``index``, in that order; a row may be taken several times."""
        return self.map(lambda t: t[index])


def _tensors(cond: Conditioning) -> list[Tensor]:
    found: list[Tensor] = []
    cond.map(lambda t: (found.append(t), t)[1])
    return found


class Attention(NamedTuple):
    """One cross-attention layer: names of its four projections, and where it sits."""

    heads: int
    q: str
    k: str
    v: str
    out: str
    block: str
    """``down``, ``mid`` or ``up``."""


class Guided(NamedTuple):
    """A guided prediction, and the two predictions it was combined from."""

    combined: Float[Tensor, "b c h w"]
    cond: Float[Tensor, "b c h w"]
    null: Float[Tensor, "b c h w"] | None
    """None without guidance, where the unconditional prediction is not needed."""


class Images(NamedTuple):
    """What was generated."""

    pixels: UInt8[Tensor, "b H W 3"]
    latents: Float[Tensor, "b c h w"]


class Backbone(ABC):
    """A text-to-image model, the same to every eraser, attack and metric whatever its family.

    Parameters are named with their component in front: ``unet.down_blocks.0…``, ``text_encoder.encoder…``.
    """

    family: ClassVar[str]
    """``sd``, ``sdxl``, ``sd3``."""
    name: str
    """What the user called the model."""
    kind: str
    """Under which its settings stand in ``presets.toml``: the family, or ``testbed``."""
    checkpointing: bool = False
    """Whether training keeps few activations and computes the others again on the way back: slower, in less memory."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Precision of its weights."""

    @abstractmethod
    def identity(self) -> str:
        """Sha256 of the model's files: the same for the same model wherever it lies."""

    def __init__(self) -> None:
        self.cost = Cost()
        self.stack = Stack(self)

    # text -------------------------------------------------------------------------------------------------------------
    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "b n"]:
        """Token ids, padded to the model's prompt length."""

    @abstractmethod
    def cut(self, prompts: Sequence[str]) -> list[str]:
        """What the model does not read of each prompt, because it is too long; empty for one that is read whole."""

    @abstractmethod
    def end(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
        """Position of each prompt's end token; the word before it is the last of the prompt."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Float[Tensor, "b n d"]:
        """Token embeddings of ids ``[b, n]``, or of one-hot (relaxed) rows ``[b, n, vocabulary]``; differentiable."""

    @abstractmethod
    def encode(
        self,
        prompts: Sequence[str] | Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None = None,
        at: Bool[Tensor, "b n"] | None = None,
    ) -> Conditioning:
        """Encode prompts or ids; ``embeddings`` take the place of the ids' own (only ``at`` some, if given). Differentiable."""

    @final
    def encode_each(self, prompts: Sequence[str], learned: LearnedWord | None = None) -> Conditioning:
        """Encode prompts, perhaps with a learned word in them, a row for each; one that stands there again is read once."""
        known = list(dict.fromkeys(prompts))
        encoded = self.encode(known) if learned is None else self.encode_learned(known, learned.word, learned.vectors)
        return encoded.rows(torch.tensor([known.index(prompt) for prompt in prompts], device=encoded.embeds.device))

    @final
    def encode_learned(self, prompts: Sequence[str], word: str, vectors: Float[Tensor, "k d"]) -> Conditioning:
        """Encode prompts in which ``word`` is read as the token embeddings ``vectors``; differentiable in those.

        The vocabulary is not resized: a filler is tokenized in the place of the word, and its embeddings are exchanged. What
        reads token ids (the gates of adapters, keys) finds -1 there, which is no token.

        Raises:
            ExpungeError: if a prompt does not hold the word, with spaces around it, or is cut off before its end.
        """
        k, filler = len(vectors), self.tokenize([FILLER])[0, 1]
        fillers = " ".join([FILLER] * k)
        ids = self.tokenize([prompt.replace(word, fillers) for prompt in prompts])
        at = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            parts = prompt.split(word)
            for i in range(1, len(parts)):
                before = fillers.join(parts[:i])
                first = int(self.end(self.tokenize([before.rstrip()]))[0])
                at[row, first : first + k] = True
            alone = all(p[-1:].strip() == "" for p in parts[:-1]) and not any(p[:1].isalnum() for p in parts[1:])
            whole = int(at[row].sum()) == k * (len(parts) - 1) and bool((ids[row][at[row]] == filler).all())
            if len(parts) == 1 or not (alone and whole):
                raise ExpungeError(
                    f"prompt '{prompt}' does not hold '{word}' as a word among those that the model reads: expected it once or "
                    "more, with spaces around it"
                )
        placed = vectors.new_zeros((*ids.shape, vectors.shape[1]))
        placed = placed.index_put(torch.where(at), vectors.repeat(int(at.sum()) // k, 1))
        return self.encode(ids, placed, at)

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Tokens that `embed` knows: ids run from 0 to this, exclusive."""

    @final
    def random_texts(self, rows: int, generator: torch.Generator, most: int = 3) -> Int[Tensor, "b n"]:
        """Token ids of ``rows`` texts of one to ``most`` random tokens each, every token of the vocabulary alike."""
        ids = self.tokenize([""]).repeat(rows, 1)
        marks = set(ids[0].tolist())
        words = torch.tensor([i for i in range(self.vocabulary) if i not in marks])
        lengths = torch.randint(1, most + 1, (rows,), generator=generator).tolist()
        start, end = ids[0, :1].clone(), ids[0, 1:2].clone()
        for row, length in zip(ids, lengths, strict=True):
            drawn = words[torch.randint(0, len(words), (length,), generator=generator)].to(ids)
            row[: length + 2] = torch.cat([start, drawn, end])
        return ids

    def unconditional(self) -> Conditioning:
        """What guidance is guided away from: the empty prompt, as the family's own pipeline reads it."""
        return self.encode([""])

    # denoising --------------------------------------------------------------------------------------------------------
    @abstractmethod
    def denoise(
        self, x: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """One evaluation of the denoiser, uncounted; use `predict`."""

    @final
    def predict(
        self, x: Float[Tensor, "b c h w"], t: int | float | Real[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """The model's own prediction (noise, v, or velocity) for each row; counted in `cost`."""
        cond = cond.expand(len(x))
        return self._predict(x, t, cond, self.opened(cond))

    def _predict(
        self,
        x: Float[Tensor, "b c h w"],
        t: int | float | Real[Tensor, "b"],
        cond: Conditioning,
        gates: dict[str, Float[Tensor, "each r"]],
    ) -> Float[Tensor, "b c h w"]:
        rows = len(x)
        if torch.is_grad_enabled():
            self.cost = Cost(forward=self.cost.forward, trained=self.cost.trained + rows)
        else:
            self.cost = Cost(forward=self.cost.forward + rows, trained=self.cost.trained)
        steps = torch.full((rows,), t, device=x.device) if isinstance(t, int | float) else t
        with self.stack.opened(gates):
            return self.denoise(x, steps, cond)

    def opened(self, cond: Conditioning, state: dict[str, Any] | None = None) -> dict[str, Float[Tensor, "b r"]]:
        """How far each row opens the attached adapters that have gates; read once a generation, where ``state`` is given."""
        found: dict[str, Tensor] = {}
        for edit in self.edits:
            if isinstance(edit, Adapter) and edit.gates:
                known = None if state is None else state.get(f"gates {edit.id}")
                found[edit.id] = edit.opened(self, cond) if known is None else known
                if state is not None:
                    state[f"gates {edit.id}"] = found[edit.id]
        return found

    @final
    def guided(
        self,
        x: Float[Tensor, "b c h w"],
        t: int | float,
        step: int,
        cond: Conditioning,
        null: Conditioning,
        scale: float,
        state: dict[str, Any],
    ) -> Guided:
        """Classifier-free guidance with every attached guidance edit: the only place where predictions are combined.

        ``step`` counts denoising steps from 0; ``state`` belongs to one generation. A scale of 1 or less is no guidance, as the
        pipelines of diffusers have it: the conditional prediction alone, at half the cost, which guidance edits can only
        condition. Both halves of a pair open an adapter's gates as the prompt does.
        """
        rows = len(x)
        cond, null = cond.expand(rows), null.expand(rows)
        guidances = [e for e in self.edits if isinstance(e, Guidance)]
        for guidance in guidances:
            cond, null = guidance.conditioning(self, cond, null, state)
        gates = self.opened(cond, state)
        if scale <= 1:
            alone = self._predict(x, t, cond, gates)
            return Guided(alone, alone, None)
        both = self._predict(torch.cat([x, x]), t, null.expand(rows).join(cond.expand(rows)), gates)
        e_null, e_cond = both.chunk(2)
        out = e_null + scale * (e_cond - e_null)
        for guidance in guidances:
            out = guidance.combine(
                self,
                out,
                GuidedStep(
                    x=x,
                    t=t,
                    index=step,
                    cond=cond,
                    null=null,
                    predicted_cond=e_cond,
                    predicted_null=e_null,
                    scale=scale,
                    state=state,
                ),
            )
        return Guided(out, e_cond, e_null)

    # trajectories -----------------------------------------------------------------------------------------------------
    @abstractmethod
    def timesteps(self, steps: int) -> list[int] | list[float]:
        """Timesteps of a deterministic trajectory of ``steps`` steps, noisy first (DDIM's; Euler's for a flow)."""

    @abstractmethod
    def step_back(
        self, x: Float[Tensor, "b c h w"], predicted: Float[Tensor, "b c h w"], t: int | float, steps: int
    ) -> Float[Tensor, "b c h w"]:
        """One step of that trajectory: from timestep ``t`` to the next, less noisy one (DDIM with eta 0)."""

    # latents ----------------------------------------------------------------------------------------------------------
    @abstractmethod
    def encode_image(self, pixels: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b c h w"]:
        """Scaled latents of images."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b H W 3"]:
        """Images of scaled latents."""

    @abstractmethod
    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Real[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        """Latents at timestep ``t``."""

    @abstractmethod
    def truth(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Real[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        """What `predict` should give at ``add_noise(latents, noise, t)``: the noise, v, or the velocity."""

    @property
    @abstractmethod
    def training_timesteps(self) -> int:
        """Timesteps that the model was trained on: 0 to this, exclusive."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images, in pixels."""

    @abstractmethod
    def noise(self, seed: int) -> Float[Tensor, "1 c h w"]:
        """The starting noise of a seed, drawn on the CPU so that seeds agree across devices.

        Float32: the sampler keeps latents in full precision, whatever the weights'.
        """

    @abstractmethod
    def generate(self, queries: Sequence[Query]) -> Images:
        """Sample one image a query, in one batch, from noise or from a given image; all queries are `Query.alike`."""

    # anatomy ----------------------------------------------------------------------------------------------------------
    @abstractmethod
    def group(self, name: str) -> list[str]:
        """Names of the parameters in a group of methods.md 0.3: ``xattn``, ``xattn-strict``, ``noxattn``, ``full``."""

    @abstractmethod
    def layers(self, name: str) -> list[str]:
        """Names of the Linear and convolution layers in a group.

        ``transformer`` (all in the transformer blocks), ``attn`` (queries, keys, values and outputs of all attention that the
        image asks), ``selfattn`` (of a UNet's self-attention).
        """

    @abstractmethod
    def text_inputs(self) -> list[str]:
        """Names of the matrices that read text, each ``[out, d]``."""

    @abstractmethod
    def attentions(self) -> dict[str, Attention]:
        """Cross-attention layers by name."""

    @abstractmethod
    def stored(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Tensors as they stand in the model, or as they would be loaded when it is not built."""

    @abstractmethod
    def parameter(self, name: str) -> tuple[torch.nn.Module, str]:
        """The built module that owns parameter ``name``, and the parameter's own name in it."""

    @abstractmethod
    def supports(self, capability: str) -> bool:
        """Whether the family has a capability: ``cross-attention``, ``pooled``."""

    @final
    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Tensors as the attached edits leave them."""
        base = self.stack.originals(list(names))
        return {n: self.stack.composed(n, base[n]) for n in names}

    # training ---------------------------------------------------------------------------------------------------------
    @final
    @contextmanager
    def weights(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """Put trained tensors in the place of the model's own; run forward AND backward inside; restored on exit."""
        self.check_trains({name.rpartition(".")[0] for name in tensors})
        owners = {name: self.parameter(name) for name in tensors}
        saved = {name: module._parameters[key] for name, (module, key) in owners.items()}
        try:
            for name, (module, key) in owners.items():
                module._parameters[key] = tensors[name]  # pyright: ignore[reportArgumentType]
            yield
        finally:
            for name, (module, key) in owners.items():
                module._parameters[key] = saved[name]

    @final
    @contextmanager
    def adapted(self, factors: Mapping[str, Tensor], scale: float = 1.0) -> Iterator[None]:
        """Put low-rank changes (tensors named ``LAYER.down``, ``LAYER.up``) beside layers; forward AND backward inside."""
        handles: list[Any] = []
        layers = as_layers(factors)
        self.check_trains(layers)
        try:
            handles = self.stack.put_beside(layers, scale, None)
            yield
        finally:
            for handle in handles:
                handle.remove()

    # edits ------------------------------------------------------------------------------------------------------------
    @property
    @final
    def edits(self) -> list[Edit]:
        """The attached edits, oldest first."""
        return self.stack.edits

    @final
    def attach(self, edit: Edit, strength: float = 1.0, any_base: bool = False) -> None:
        """Put an edit on the stack.

        Args:
            edit: the edit.
            strength: 1 is the edit as made, 0 nothing, 0.5 half way (not for guidance).
            any_base: accept tensors that were made for another base, as long as the shapes fit, and guidance without the edits
                it was made for.

        Raises:
            ExpungeError: if it is attached already, needs others that are not, or was made for another base.
        """
        self.stack.attach(edit, strength, any_base)

    @final
    @contextmanager
    def bare(self) -> Iterator[None]:
        """The model without its edits, which are attached again, as they were, on exit."""
        with ExitStack() as back:
            for edit, strength in reversed(self.stack.entries):
                self.detach(edit)
                back.callback(self.attach, edit, strength=strength, any_base=True)
            yield

    @final
    @contextmanager
    def attached(
        self, edits: Sequence[Edit], strength: float | Sequence[float] = 1.0, any_base: bool = False
    ) -> Iterator[None]:
        """Attach edits in order and detach them on exit; ``strength`` is that of all which have weights, or of each."""
        each = strengths(strength, edits)
        with ExitStack() as off:  # which takes off all that it can, whatever goes wrong with one
            for edit, one in zip(edits, each, strict=True):
                self.attach(edit, strength=one, any_base=any_base)
                off.callback(self.detach, edit)
            yield

    @final
    def detach(self, edit: Edit) -> None:
        """Take an edit off the stack, wherever it stands; what it touched is computed again from the base.

        Raises:
            ExpungeError: if it is not attached, or another attached edit needs it.
        """
        self.stack.detach(edit)

    @final
    def edit_of(self, changed: dict[str, Tensor]) -> Weights:
        """The edit that turns the model as it stands (with its stack) into one with the tensors ``changed``."""
        base = self.stack.originals(list(changed))
        now = {n: self.stack.composed(n, base[n]) for n in changed}
        on_base = {
            n: changed[n].to(base[n])
            if now[n] is base[n]
            else (base[n].float() + changed[n].float() - now[n].float()).to(base[n])
            for n in changed
        }
        return Weights(on_base, base_sha256=fingerprints(base), requires=tuple(e.id for e in self.edits))

    @final
    def adapter_of(
        self, factors: Mapping[str, Tensor], scale: float = 1.0, gates: Sequence[Sequence[str]] = ()
    ) -> Adapter:
        """The adapter of this base with ``factors``, on the edits that are attached; see `Adapter` for the arguments."""
        base = self.stack.originals([f"{layer}.weight" for layer in as_layers(factors)])
        requires = tuple(e.id for e in self.edits)
        return Adapter(factors, scale=scale, gates=gates, base_sha256=fingerprints(base), requires=requires)

    def check_carries(self, edit: Edit, coming: bool) -> None:
        """Refuse to write or hook what would have no effect, or could not be taken back: a user's pipeline is looked at.

        ``coming`` tells an edit that is to be attached from one that is to be detached.

        Raises:
            ExpungeError: naming the tensor or layer, and its state.
        """

    def check_trains(self, layers: Collection[str]) -> None:
        """Refuse to train layers that the model does not read in its present state: a user's pipeline is looked at.

        Raises:
            ExpungeError: naming one, and the state.
        """

    def written(self, names: Sequence[str]) -> None:
        """Called when tensors were written: what was made from them before is made again."""

    def steering_changed(self) -> None:
        """Called when an edit that is not in the weights comes or goes; a backbone around a user's pipeline moves its hooks."""
