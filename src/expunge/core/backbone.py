"""One model family: text, denoising, latents, anatomy, and the stack of edits that it carries."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from torch import Tensor

from expunge.core import texts
from expunge.core.adapter import Adapter, Gate, open_gates
from expunge.core.attention import Attention, AttentionHook, AttentionHooks, Evaluation
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.edit import Edit, Weights
from expunge.core.guidance import Guided, guided
from expunge.core.query import Images, LearnedWord, Query, Start
from expunge.core.stack import Stack
from expunge.core.training import put_beside, swapped


class Backbone(ABC):
    """A text-to-image model, the same to every eraser, attack and metric whatever its family.

    Parameters are named with their component in front: ``unet.down_blocks.0…``, ``text_encoder.encoder…``.
    """

    family: ClassVar[str]
    """``sd``, ``sdxl``, ``sd3``, ``flux``."""
    name: str
    """What the user called the model."""
    kind: str
    """Under which its settings stand in ``presets.toml``: the family, or ``testbed``."""
    first: ClassVar[int] = 1
    """Position of a prompt's first word: after the start token, where the tokenizer sets one."""
    filler: ClassVar[str] = "a"
    """A word that every text encoder reads as one token, to stand where a learned one will."""
    redefined: ClassVar[Mapping[str, int]] = {}
    """Groups, and erasers, that came to mean something else here than stored results were made with, and how often."""
    told_scale: float = 1.0
    """Scale of guidance that a distilled denoiser is told; at 1 it answers unguided."""
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
        self.attention = AttentionHooks(self)
        self.evaluation: Evaluation | None = None
        """What the layers heed in the evaluation that is going on; None outside of one."""

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
    def spell(self, ids: Int[Tensor, "b n"]) -> list[str]:
        """The text of each row of token ids, without the marks of start, end and padding."""

    @abstractmethod
    def spellable(self) -> Int[Tensor, "v"]:
        """The tokens which, written out as words of their own, are read again as themselves; ascending ids.

        Pieces of words are not among them, nor marks. None are for a model whose tokens cannot be looked at.
        """

    @abstractmethod
    def embed(self, ids: Tensor) -> Float[Tensor, "b n d"]:
        """Token embeddings of ids ``[b, n]``, or of one-hot (relaxed) rows ``[b, n, vocabulary]``; differentiable."""

    def word_vectors(self, word: str) -> Float[Tensor, "1 d"]:
        """What a learned word begins as: the token embeddings of the first token of ``word``, of all encoders that read it."""
        return self.embed(self.tokenize([word]))[0, self.first : self.first + 1]

    def word_spread(self) -> texts.Spread:
        """Where token embeddings lie, of all encoders that read a learned word."""
        return texts.spread(self)

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
        return texts.encode_each(self, prompts, learned)

    @final
    def encode_learned(self, prompts: Sequence[str], word: str, vectors: Float[Tensor, "k d"]) -> Conditioning:
        """Encode prompts in which ``word`` is read as the token embeddings ``vectors``; differentiable in those.

        The vocabulary is not resized: a filler is tokenized in the place of the word, and its embeddings are exchanged. What
        reads token ids (the gates of adapters, keys) finds -1 there, which is no token.

        Raises:
            ExpungeError: if a prompt does not hold the word, with spaces around it, or is cut off before its end.
        """
        return texts.encode_learned(self, prompts, word, vectors)

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Tokens that `embed` knows: ids run from 0 to this, exclusive."""

    @final
    def random_texts(self, rows: int, generator: torch.Generator, most: int = 3) -> Int[Tensor, "b n"]:
        """Token ids of ``rows`` texts of one to ``most`` random tokens each, every token of the vocabulary alike."""
        return texts.random_texts(self, rows, generator, most)

    def unconditional(self) -> Conditioning:
        """What guidance is guided away from: the empty prompt, as the family's own pipeline reads it."""
        return self.encode([""])

    # denoising --------------------------------------------------------------------------------------------------------
    @abstractmethod
    def denoise(self, x: Float[Tensor, "b *chw"], t: Real[Tensor, "b"], cond: Conditioning) -> Float[Tensor, "b *chw"]:
        """One evaluation of the denoiser, uncounted; use `predict`."""

    @final
    def predict(
        self, x: Float[Tensor, "b *chw"], t: int | float | Real[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b *chw"]:
        """The model's own prediction (noise, v, or velocity) for each row; counted in `cost`."""
        cond = cond.expand(len(x))
        steps = torch.full((len(x),), t, device=x.device) if isinstance(t, int | float) else t
        return self.evaluated(x, cond, Evaluation(t=steps, gates=open_gates(self, cond, {})))

    @final
    def evaluated(
        self, x: Float[Tensor, "b *chw"], cond: Conditioning, evaluation: Evaluation
    ) -> Float[Tensor, "b *chw"]:
        """One evaluation that is counted in `cost`, and whose layers heed ``evaluation``."""
        if torch.is_grad_enabled():
            self.cost = Cost(forward=self.cost.forward, trained=self.cost.trained + len(x))
        else:
            self.cost = Cost(forward=self.cost.forward + len(x), trained=self.cost.trained)
        with self.evaluating(evaluation):
            return self.denoise(x, evaluation.t, cond)

    @final
    @contextmanager
    def evaluating(self, evaluation: Evaluation, hooks: tuple[AttentionHook, ...] | None = None) -> Iterator[None]:
        """Have the layers heed an evaluation inside; ``hooks`` are all that look at attention, if not those that do now."""
        before, self.evaluation = self.evaluation, evaluation
        try:
            with self.attention.heeding((*evaluation.hooks, *self.attention.active) if hooks is None else hooks):
                yield
        finally:
            self.evaluation = before

    @final
    def attending(self, *hooks: AttentionHook) -> AbstractContextManager[None]:
        """Have ``hooks`` look at the cross-attention of every evaluation inside, or change it; after those of edits.

        Not of what edits ask on the way. Run forward AND backward inside, if they should be trained through.

        Raises:
            ExpungeError: for a model without cross-attention.
        """
        return self.attention.heeding((*self.attention.active, *hooks))

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
        true_cfg: float = 1.0,
    ) -> Guided:
        """Classifier-free guidance with every attached guidance edit; `expunge.core.guidance` says how.

        ``step`` counts the sampler's calls from 0, two a step in second order; ``state`` belongs to one generation. A scale of
        1 or less is no guidance, as in diffusers: the conditional prediction alone, at half the cost, which guidance edits can
        only condition. Both halves of a pair open an adapter's gate as the prompt does.

        A distilled model (FLUX) is told the scale, and answers as if guided; its pairs of predictions have ``true_cfg``.
        """
        return guided(self, x, t, step, cond, null, scale, state, true_cfg)

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

    @abstractmethod
    def begun(self, query: Query, steps: int) -> Start:
        """What goes on where the model's own sampler stands after the first ``steps`` steps of ``query``.

        As the start of the same query, its noise included, it gives the latents of that step back.
        """

    # anatomy ----------------------------------------------------------------------------------------------------------
    @abstractmethod
    def group(self, name: str) -> list[str]:
        """Names of the parameters in a group of methods.md 0.3: ``xattn``, ``xattn-strict``, ``noxattn``, ``full``."""

    @abstractmethod
    def layers(self, name: str) -> list[str]:
        """Names of the Linear and convolution layers in a group.

        ``transformer`` (all in its blocks), ``attn`` (all parts of attention that the image asks), ``selfattn`` (a UNet's).
        """

    @abstractmethod
    def text_inputs(self) -> list[str]:
        """Names of the matrices that read text, each ``[out, d]``."""

    def pooled_inputs(self) -> list[str]:
        """Names of the matrices ``[out, p]`` that read a text's pooled vector, where a closed form edits them."""
        return []

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
        """Whether it has a capability: ``cross-attention``, ``pooled``, ``flow``, ``distilled`` (told its guidance), ``t5``."""

    @final
    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Tensors as the attached edits leave them."""
        base = self.stack.originals(list(names))
        return {n: self.stack.composed(n, base[n]) for n in names}

    # training ---------------------------------------------------------------------------------------------------------
    @final
    def weights(self, tensors: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Put trained tensors in the place of the model's own; run forward AND backward inside; restored on exit."""
        return swapped(self, tensors)

    @final
    def adapted(self, factors: Mapping[str, Tensor], scale: float = 1.0) -> AbstractContextManager[None]:
        """Put low-rank changes (tensors named ``LAYER.down``, ``LAYER.up``) beside layers; forward AND backward inside."""
        return put_beside(self, factors, scale)

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
    def bare(self) -> AbstractContextManager[None]:
        """The model without its edits, which are attached again, as they were, on exit."""
        return self.stack.bare()

    @final
    def attached(
        self, edits: Sequence[Edit], strength: float | Sequence[float] = 1.0, any_base: bool = False
    ) -> AbstractContextManager[None]:
        """Attach edits in order and detach them on exit; ``strength`` is that of all which have weights, or of each."""
        return self.stack.attached(edits, strength, any_base)

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
        return self.stack.edit_of(changed)

    @final
    def adapter_of(self, factors: Mapping[str, Tensor], scale: float = 1.0, gate: Gate | None = None) -> Adapter:
        """The adapter of this base with ``factors``, on the edits that are attached; see `Adapter` for the arguments."""
        return self.stack.adapter_of(factors, scale, gate)

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
