"""One model family: text, denoising, latents, anatomy, and the stack of edits that it carries."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from torch import Tensor

from expunge.core.adapter import Adapter, LowRank, as_layers, low_rank
from expunge.core.cost import Cost
from expunge.core.edit import Edit, Guidance, GuidedStep, Weights, fingerprint_as, fingerprints, strengths
from expunge.core.errors import ExpungeError
from expunge.core.query import LearnedWord, Query

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
    """None at scale 1, where the unconditional prediction is not needed."""


class Images(NamedTuple):
    """What was generated."""

    pixels: UInt8[Tensor, "b H W 3"]
    latents: Float[Tensor, "b c h w"]


class Backbone(ABC):
    """A text-to-image model, the same to every eraser, attack and metric whatever its family.

    Parameters are named with their component in front: ``unet.down_blocks.0…``, ``text_encoder.text_model…``.
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
        self._stack: list[tuple[Edit, float]] = []
        self._base: dict[str, Tensor] = {}
        self._beside: dict[str, list[Any]] = {}
        """Handles of the layers that each attached adapter stands beside."""
        self._gates: dict[str, Float[Tensor, "b r"]] = {}
        """How far the rows of the evaluation that is going on open each adapter with gates."""

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
        return self._predict(x, t, cond, self._opened(cond))

    def _predict(
        self,
        x: Float[Tensor, "b c h w"],
        t: int | float | Real[Tensor, "b"],
        cond: Conditioning,
        gates: dict[str, Float[Tensor, "b r"]],
    ) -> Float[Tensor, "b c h w"]:
        rows = len(x)
        if torch.is_grad_enabled():
            self.cost = Cost(forward=self.cost.forward, trained=self.cost.trained + rows)
        else:
            self.cost = Cost(forward=self.cost.forward + rows, trained=self.cost.trained)
        steps = torch.full((rows,), t, device=x.device) if isinstance(t, int | float) else t
        self._gates = gates
        try:
            return self.denoise(x, steps, cond)
        finally:
            self._gates = {}

    def _opened(self, cond: Conditioning, state: dict[str, Any] | None = None) -> dict[str, Float[Tensor, "b r"]]:
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

        ``step`` counts denoising steps from 0; ``state`` belongs to one generation. At scale 1 with no guidance edit it is the
        conditional prediction alone, at half the cost. Both halves of a pair open an adapter's gates as the prompt does.
        """
        rows = len(x)
        cond, null = cond.expand(rows), null.expand(rows)
        guidances = [e for e, _ in self._stack if isinstance(e, Guidance)]
        for guidance in guidances:
            cond, null = guidance.conditioning(self, cond, null, state)
        gates = self._opened(cond, state)
        if scale == 1 and not guidances:
            alone = self._predict(x, t, cond, gates)
            return Guided(alone, alone, None)
        pair = {name: torch.cat([gate, gate]) for name, gate in gates.items()}
        both = self._predict(torch.cat([x, x]), t, null.expand(rows).join(cond.expand(rows)), pair)
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
        base = self._originals(names)
        return {n: self._composed(n, base[n]) for n in names}

    # training ---------------------------------------------------------------------------------------------------------
    @final
    @contextmanager
    def weights(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """Put trained tensors in the place of the model's own; run forward AND backward inside; restored on exit."""
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
        try:
            handles = self._put_beside(as_layers(factors), scale, None)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _put_beside(self, layers: Mapping[str, LowRank], scale: float, gated_by: str | None) -> list[Any]:
        """Hooks that add low-rank changes; ``gated_by`` is the id of the adapter whose gates they listen to."""

        def added(layer: torch.nn.Module, args: tuple[Any, ...], output: Tensor, part: LowRank) -> Tensor:
            gate = None if gated_by is None else self._gates.get(gated_by)
            return output + scale * low_rank(layer, args[0], part, gate)

        return [
            self.parameter(f"{name}.weight")[0].register_forward_hook(partial(added, part=part))
            for name, part in layers.items()
        ]

    # edits ------------------------------------------------------------------------------------------------------------
    @property
    @final
    def edits(self) -> list[Edit]:
        """The attached edits, oldest first."""
        return [edit for edit, _ in self._stack]

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
        attached = {e.id for e in self.edits}
        if edit.id in attached:
            raise ExpungeError(f"edit {edit.id} is attached already: expected each edit once")
        missing = [r for r in edit.requires if r not in attached]
        if missing and not (any_base and isinstance(edit, Guidance)):
            raise ExpungeError(
                f"edit {edit.id} was made on top of edit {missing[0]}: expected that one to be attached first"
            )
        if isinstance(edit, Weights):
            self._check_base(edit, any_base)
        elif isinstance(edit, Adapter):
            self._check_layers(edit, any_base)
        elif isinstance(edit, Guidance) and edit.alone and any(type(e) is type(edit) for e in self.edits):
            raise ExpungeError(
                f"a {edit.fields()['eraser']} edit is attached already: expected one that names all targets"
            )
        strengths([strength], [edit])  # which refuses one that scales nothing
        self._stack.append((edit, strength))
        try:
            self._refresh(edit)
        except BaseException:
            self._stack.pop()
            self._refresh(edit)
            raise

    @final
    @contextmanager
    def bare(self) -> Iterator[None]:
        """The model without its edits, which are attached again, as they were, on exit."""
        stack = list(self._stack)
        try:
            for edit, _ in reversed(stack):
                self.detach(edit)
            yield
        finally:
            still = {edit.id for edit in self.edits}
            for edit, strength in stack:
                if edit.id not in still:
                    self.attach(edit, strength=strength, any_base=True)

    @final
    @contextmanager
    def attached(
        self, edits: Sequence[Edit], strength: float | Sequence[float] = 1.0, any_base: bool = False
    ) -> Iterator[None]:
        """Attach edits in order and detach them on exit; ``strength`` is that of all which have weights, or of each."""
        done: list[Edit] = []
        each = strengths(strength, edits)
        try:
            for edit, one in zip(edits, each, strict=True):
                self.attach(edit, strength=one, any_base=any_base)
                done.append(edit)
            yield
        finally:
            for edit in reversed(done):
                self.detach(edit)

    @final
    def detach(self, edit: Edit) -> None:
        """Take an edit off the stack, wherever it stands; what it touched is computed again from the base.

        Raises:
            ExpungeError: if it is not attached, or another attached edit needs it.
        """
        index = next((i for i, e in enumerate(self.edits) if e.id == edit.id), None)
        if index is None:
            raise ExpungeError(
                f"edit {edit.id} is not attached: expected one of {[e.id for e in self.edits] or 'none'}"
            )
        needing = [e.id for e in self.edits if edit.id in e.requires]
        if needing:
            raise ExpungeError(f"edit {edit.id} is needed by edit {needing[0]}: expected that one to be detached first")
        del self._stack[index]
        self._refresh(edit)

    @final
    def edit_of(self, changed: dict[str, Tensor]) -> Weights:
        """The edit that turns the model as it stands (with its stack) into one with the tensors ``changed``."""
        base = self._originals(list(changed))
        now = {n: self._composed(n, base[n]) for n in changed}
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
        base = self._originals([f"{layer}.weight" for layer in as_layers(factors)])
        requires = tuple(e.id for e in self.edits)
        return Adapter(factors, scale=scale, gates=gates, base_sha256=fingerprints(base), requires=requires)

    def _originals(self, names: Sequence[str]) -> dict[str, Tensor]:
        fresh = [n for n in names if n not in self._base]
        return {**(self.stored(fresh) if fresh else {}), **{n: self._base[n] for n in names if n in self._base}}

    def _composed(self, name: str, base: Tensor) -> Tensor:
        touching = [(e.replaced[name], s) for e, s in self._stack if isinstance(e, Weights) and name in e.replaced]
        if not touching:
            return base
        if len(touching) == 1 and touching[0][1] == 1.0:
            return touching[0][0].to(base)
        total = base.float()
        for replaced, strength in touching:
            total = total + strength * (replaced.to(base.device).float() - base.float())
        return total.to(base.dtype)

    def _check_base(self, edit: Weights, any_base: bool) -> None:
        names = list(edit.replaced)
        known = set(self.group("full")) | set(self.group("text-encoder"))
        foreign = [n for n in names if n not in known]
        if foreign:
            raise ExpungeError(
                f"edit {edit.id} replaces '{foreign[0]}', which {self.name} does not have: expected an edit of its family"
            )
        base = self._originals(names)
        for name in names:
            if base[name].shape != edit.replaced[name].shape:
                given, expected = tuple(edit.replaced[name].shape), tuple(base[name].shape)
                raise ExpungeError(
                    f"edit {edit.id} replaces '{name}' of shape {given}: expected {expected} for {self.name}"
                )
        if not any_base:
            made = {str(t.dtype).removeprefix("torch.") for t in edit.replaced.values()}
            self._check_fingerprints(edit, edit.base_sha256, base, made)

    def _check_fingerprints(
        self, edit: Edit, wanted: Mapping[str, str], base: dict[str, Tensor], made: AbstractSet[str]
    ) -> None:
        """Refuse an edit that was made for other tensors than ``base``, as they are here or as they read in one of ``made``."""
        here = {str(t.dtype).removeprefix("torch.") for t in base.values()}
        dtypes = [*here, *sorted(made - here)]  # most edits are known at the first
        if not any(fingerprint_as(base, dtype) == wanted.get(dtype) for dtype in dtypes):
            raise ExpungeError(
                f"edit {edit.id} was made for another base than {self.name}: expected its own (or --any-base)"
            )

    def _check_layers(self, edit: Adapter, any_base: bool) -> None:
        known = set(self.group("full"))
        for name, part in edit.layers.items():
            if f"{name}.weight" not in known:
                raise ExpungeError(
                    f"edit {edit.id} adapts '{name}', which {self.name} does not have: expected an adapter of its family"
                )
            layer = self.parameter(f"{name}.weight")[0]
            out, taken, *kernel = layer._parameters["weight"].shape  # pyright: ignore[reportOptionalMemberAccess]
            rank = len(part.down)
            fitting = ((rank, taken, *kernel), (out, rank, *(1 for _ in kernel)))
            given = (tuple(part.down.shape), tuple(part.up.shape))
            if given != fitting:
                raise ExpungeError(
                    f"edit {edit.id} adapts '{name}' with shapes {given[0]} and {given[1]}: expected {fitting[0]} and "
                    f"{fitting[1]} for {self.name}"
                )
        if edit.base_sha256 is not None and not any_base:
            base = self._originals([f"{name}.weight" for name in edit.layers])
            self._check_fingerprints(edit, edit.base_sha256, base, edit.base_sha256.keys())

    def _refresh(self, edit: Edit) -> None:
        """Write what the stack now says into the tensors that ``edit`` touches, or beside its layers."""
        if isinstance(edit, Adapter):
            for handle in self._beside.pop(edit.id, []):
                handle.remove()
            strength = next((s for e, s in self._stack if e.id == edit.id), None)
            if strength is not None:
                gated_by = edit.id if edit.gates else None
                self._beside[edit.id] = self._put_beside(edit.layers, edit.scale * strength, gated_by)
        if not isinstance(edit, Weights):
            self._steering_changed()
            return
        touched = list(edit.tensors())
        base = self._originals(touched)
        still = {n for e in self.edits if isinstance(e, Weights) for n in e.replaced}
        for name in touched:
            module, key = self.parameter(name)
            target = module._parameters[key]
            if target is None:
                raise ExpungeError(f"parameter '{name}' of {self.name} is not loaded")
            if name not in self._base:
                self._base[name] = base[name].detach().clone()
            with torch.no_grad():
                target.copy_(self._composed(name, self._base[name]))
            if name not in still:
                del self._base[name]

    def _steering_changed(self) -> None:
        """Called when an edit that is not in the weights comes or goes; a backbone around a user's pipeline moves its hooks."""
