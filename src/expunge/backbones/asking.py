"""How the denoiser is asked: questions of our own, and what its layers heed beside its arguments meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from expunge.backbones import held
from expunge.core.conditioning import Conditioning, InjectedPrompt
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.backbones.pipeline import PipelineBackbone


class Question(NamedTuple):
    """What a call asks the denoiser."""

    x: Float[Tensor, "b c h w"]
    t: Tensor
    cond: Conditioning


class Smallest(NamedTuple):
    """A question that costs next to nothing."""

    x: Float[Tensor, "1 c h w"]
    cond: Conditioning


class RunningCall(NamedTuple):
    """A call of the denoiser by a user's pipeline, whose arguments our own questions repeat."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Int[Tensor, "b"]
    """Its rows with the prompt."""


@final
class Asker:
    """Asks the denoiser of a backbone, and tells its layers what they read beside the arguments."""

    def __init__(self, backbone: "PipelineBackbone") -> None:
        """Nothing is asked yet of ``backbone``."""
        self.backbone = backbone
        self.inside = False
        """Whether an evaluation of our own is going on: not one that a user's pipeline asks for."""
        self.running: RunningCall | None = None
        """The call of a user's pipeline that is going on."""
        self.prompt: InjectedPrompt | None = None
        """What the layers of our own evaluation read after the text."""

    @property
    def model(self) -> Any:
        """The denoiser."""
        return self.backbone.component(self.backbone.denoiser)

    def denoise(self, x: Float[Tensor, "b *chw"], t: Real[Tensor, "b"], cond: Conditioning) -> Float[Tensor, "b *chw"]:
        """One evaluation of our own; within a user's call it repeats the call's other arguments."""
        backbone, model = self.backbone, self.model
        if backbone.checkpointing and not model.is_gradient_checkpointing:
            model.enable_gradient_checkpointing(self._checkpointed)
        elif model.is_gradient_checkpointing and not backbone.checkpointing:
            model.disable_gradient_checkpointing()
        if self.running is None and backbone.user_pipeline is not None:
            self._check_alone(model)
        with self._telling(cond.prompt), held.eager(model):
            if self.running is None:
                return backbone.run_denoiser(x.to(backbone.dtype), t, cond).to(x.dtype)
            args, kwargs = self._repeated(self.running, len(x))
            cond = self.fitted(cond, backbone.parse_call(args, kwargs).cond.embeds.shape[1])
            args, kwargs = backbone.change_call(args, kwargs, cond, x.to(backbone.dtype), t)
            output = model(*args, **kwargs)
        return (output[0] if isinstance(output, tuple) else output.sample).to(x.dtype)

    def ask_smallest(self) -> None:
        """Ask the smallest question that the denoiser answers, uncounted."""
        question = self.backbone.smallest()
        with self._telling(None), held.eager(self.model), torch.no_grad():
            self.backbone.run_denoiser(question.x, torch.ones(1, device=self.backbone.device), question.cond)

    def _check_alone(self, model: Any) -> None:
        """Refuse a question of our own to a denoiser that only its pipeline can ask."""
        if getattr(model.config, "encoder_hid_dim_type", None) == "ip_image_proj":
            raise ExpungeError(f"{self.backbone.name} reads an IP-Adapter's images: expected unload_ip_adapter() first")
        if held.replaced_forward(model):
            raise ExpungeError(
                f"the {self.backbone.denoiser} of {self.backbone.name} runs somebody else's code that keeps what it computed "
                "(DeepCache, `enable_cache`?): expected that to be switched off first"
            )

    # within a user's call ---------------------------------------------------------------------------------------------
    @contextmanager
    def repeating(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Int[Tensor, "b"]) -> Iterator[None]:
        """Our own questions inside repeat a running call's other arguments, of its ``rows`` with the prompt."""
        before, self.running = self.running, RunningCall(args, kwargs, rows)
        try:
            yield
        finally:
            self.running = before

    def _repeated(self, call: RunningCall, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call that is going on, of its rows with the prompt (of all, for as many)."""
        total = len(self.backbone.parse_call(call.args, call.kwargs).x)

        def taken(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[call.rows.to(value.device)] if value.ndim and len(value) == total != rows else value
            if isinstance(value, dict):
                return {name: taken(inner) for name, inner in value.items()}
            return type(value)(taken(inner) for inner in value) if type(value) in (list, tuple) else value

        return taken(tuple(call.args)), taken(dict(call.kwargs))

    def fitted(self, cond: Conditioning, length: int) -> Conditioning:
        """``cond`` as long as the call's own texts, which may be several joined: empty texts follow.

        Raises:
            ExpungeError: if theirs is no multiple of the model's length.
        """
        own = cond.embeds.shape[1]
        if own == length:
            return cond
        if length % own:
            raise ExpungeError(
                f"texts of {length} vectors in a call, and {own} of an edit's: expected as many, or a multiple of them"
            )
        with torch.no_grad():
            empty = self.backbone.encode([""]).embeds.to(cond.embeds).expand(len(cond.embeds), -1, -1)
        return replace(cond, embeds=torch.cat([cond.embeds, *[empty] * (length // own - 1)], 1), tokens=None)

    # beside the arguments ---------------------------------------------------------------------------------------------
    @contextmanager
    def injecting(self, prompt: InjectedPrompt | None) -> Iterator[None]:
        """Layers read ``prompt`` after the text inside."""
        handles: list[Any] = []
        try:
            handles = self.backbone.injected(prompt)
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _telling(self, prompt: InjectedPrompt | None) -> Iterator[None]:
        """An evaluation of our own, whose layers read ``prompt`` after the text."""
        before = self.inside, self.prompt
        self.inside, self.prompt = True, prompt
        try:
            with self.injecting(prompt):
                yield
        finally:
            self.inside, self.prompt = before

    def _checkpointed(self, block: torch.nn.Module, *args: Any) -> Any:
        """Run a block whose activations are computed again on the way back, when it must heed what it heeded the first time."""
        backbone = self.backbone
        prompt, evaluation, hooks = self.prompt, backbone.evaluation, backbone.attention.active

        def again(*given: Any) -> Any:
            if self.inside or evaluation is None:
                return block(*given)
            with backbone.evaluating(evaluation, hooks), self._telling(prompt):
                return block(*given)

        return checkpoint(again, *args, use_reentrant=False)
