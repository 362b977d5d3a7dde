"""Edits that are not in the weights, carried into a diffusers pipeline's own loop."""

import sys
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.backbones.held import Pipeline, compiled, replaced_forward, unwrapped
from expunge.core.adapter import Adapter
from expunge.core.backbone import Conditioning
from expunge.core.edit import Edit, Guidance, GuidedStep
from expunge.core.errors import ExpungeError, ExpungeWarning

if TYPE_CHECKING:
    from expunge.backbones.pipeline import PipelineBackbone

REMEMBERED = 32
"""Batches of texts whose words are remembered: a pipeline hands only their vectors on."""


class Running(NamedTuple):
    """The pipeline whose loop asks the denoiser, and what it asks."""

    pipe: Any
    frame: FrameType
    roles: tuple[str, ...]
    """What each equal part of the rows is: ``null``, ``cond``, or ``perturbed`` (PAG's, which has the prompt, too)."""

    def rows(self, role: str, total: int) -> slice:
        """The rows of a role."""
        each = total // len(self.roles)
        first = self.roles.index(role) * each
        return slice(first, first + each)


def running(denoiser: torch.nn.Module, part: str, total: int) -> Running:
    """Which pipeline is calling ``denoiser`` on ``total`` rows: by the call itself, since several may share it.

    Raises:
        ExpungeError: if no pipeline does, or it does not say what its rows are.
    """
    frame: FrameType | None = sys._getframe(1)
    pipe: Any = None
    while frame is not None:
        pipe = frame.f_locals.get("self")
        if unwrapped(getattr(pipe, part, None)) is denoiser and hasattr(pipe, "components"):
            break
        frame = frame.f_back
    if frame is None:
        raise ExpungeError(
            f"the {part} was called outside of a pipeline while edits that steer guidance are attached: expected a call of the "
            "pipeline (or the edits detached), since nothing says which rows are guided"
        )
    latents = frame.f_locals.get("latents")
    guided = getattr(pipe, "do_classifier_free_guidance", None)
    roles = ("null", "cond") if guided else ("cond",)
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        roles = (*roles, "perturbed")
    if guided is None or not isinstance(latents, Tensor) or total != len(roles) * len(latents):
        images = len(latents) if isinstance(latents, Tensor) else "unknown"
        raise ExpungeError(
            f"a {type(pipe).__name__} asks for {total} rows at {images} images: expected {' and '.join(roles)} rows of each, "
            "or edits that do not steer guidance"
        )
    return Running(pipe, frame, roles)


def check_steers(pipe: Any, part: str, edit: Edit) -> None:
    """Refuse an edit that a pipeline cannot carry in its own loop.

    Raises:
        ExpungeError: naming the pipeline and why.
    """
    if not hasattr(type(pipe), "do_classifier_free_guidance"):
        raise ExpungeError(
            f"a {type(pipe).__name__} does not say which rows are guided: expected a pipeline that does, or an edit of weights"
        )
    if not combines(edit):
        return
    if hasattr(type(pipe), "do_perturbed_attention_guidance"):
        raise ExpungeError(
            f"a {type(pipe).__name__} combines three predictions, and a {_name(edit)} edit combines them itself: expected a "
            "pipeline without perturbed attention, or another edit"
        )
    if replaced_forward(getattr(pipe, part)):
        raise ExpungeError(
            f"the {part} runs somebody else's code that keeps what it computed (DeepCache?), and a {_name(edit)} edit asks it "
            "questions of its own: expected that to be switched off, or another edit"
        )


def combines(edit: Edit) -> bool:
    """Whether an edit changes the guided prediction itself."""
    return isinstance(edit, Guidance) and type(edit).combine is not Guidance.combine


def steers(edit: Edit) -> bool:
    """Whether an edit has to know the rows of a call."""
    return isinstance(edit, Guidance) or (isinstance(edit, Adapter) and bool(edit.gates))


def _name(edit: Edit) -> str:
    return edit.eraser if isinstance(edit, Guidance) else edit.kind


def rescaled(guided: Float[Tensor, "b *chw"], cond: Float[Tensor, "b *chw"], share: float) -> Float[Tensor, "b *chw"]:
    """A guided prediction brought back to the spread of the conditional one, by a ``share`` (2305.08891, section 3.4)."""
    over = tuple(range(1, guided.ndim))
    like = guided * (cond.std(over, keepdim=True) / guided.std(over, keepdim=True))  # Eq. 15
    return share * like + (1 - share) * guided  # Eq. 16


@final
class Steering:
    """Carries guidance edits, and the gates of adapters, into a pipeline's own loop, which combines predictions by itself.

    The pipeline computes ``null + scale * (cond - null)``; handing it the guided prediction as both halves makes that the
    guided prediction, whatever the scale. Without guidance the pipeline has one half, and only what it is conditioned on can
    be changed.
    """

    def __init__(self, backbone: "PipelineBackbone", parts: Pipeline) -> None:
        """Steer for the edits of ``backbone``; ``parts`` hold the text encoders that are asked what a text means."""
        self.backbone, self.parts = backbone, parts
        self.part = backbone.denoiser
        self.texts: deque[Tensor] = deque(maxlen=REMEMBERED)
        """Token ids of what the text encoder was last asked."""
        self.asking = False
        self.injected: list[Any] = []
        self.call: Running | None = None
        self.halves: tuple[Conditioning, Conditioning] | None = None
        self.given: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        """The call's arguments as they were: a UNet takes a T2I-Adapter's residuals out of their list."""
        self._begin(None)

    def _begin(self, generation: object) -> None:
        """Another generation: nothing is known of it yet."""
        self.generation, self.index, self.last = generation, 0, -1.0
        self.state: dict[str, Any] = {}
        self.embeds: Tensor | None = None
        self.tokens: Tensor | None = None

    def hooks(self) -> list[Any]:
        """Hook the first text encoder and the denoiser, as the pipeline calls them."""
        as_is = torch.compiler.disable  # they look at the call, which no tracing of a compiled module sees
        text, denoiser = self.parts.get(self.backbone.towers[0]), self.parts.get(self.part)
        return [
            text.register_forward_pre_hook(as_is(self.read), with_kwargs=True),
            denoiser.register_forward_pre_hook(as_is(self.before), with_kwargs=True),
            denoiser.register_forward_hook(as_is(self.after), with_kwargs=True, always_call=True),
        ]

    def release(self) -> None:
        """Let the layers read the text alone again, and adapters be open."""
        self._unhook()
        self.call, self.halves, self.given = None, None, None
        self.backbone.stack.gates = {}
        self.backbone.call = None

    def _unhook(self) -> None:
        for handle in self.injected:
            handle.remove()
        self.injected = []

    # words ------------------------------------------------------------------------------------------------------------
    def read(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the words that the text encoder reads: the pipeline hands only their vectors on."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and not self.asking and not self.backbone.asking_text:
            self.texts.append(ids)

    def words_of(self, embeds: Float[Tensor, "b n d"]) -> Int[Tensor, "b m"] | None:
        """Token ids of the texts that gave these vectors; None if one of them is no text's that was seen."""
        if not self.texts:
            return None
        lengths = {len(ids[0]) for ids in self.texts}
        ids = torch.cat([i for i in self.texts if len(i[0]) == max(lengths)]).unique(dim=0)
        with torch.no_grad():
            known = self.backbone.encode(ids).embeds.to(embeds)
        if known.shape[1:] != embeds.shape[1:]:
            return None
        near = (embeds[:, None] - known[None]).flatten(2).norm(dim=-1) / known.flatten(1).norm(dim=-1)
        best = near.min(1)
        return ids[best.indices] if bool((best.values < 0.01).all()) else None

    # a call of the denoiser ---------------------------------------------------------------------------------------------
    def before(
        self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change what the rows are conditioned on."""
        if self.backbone.inside:
            return None
        self.release()
        asked = self.backbone.asked(args, kwargs)
        total = len(asked.x)
        call = running(self.parts.get(self.part), self.part, total)
        self._check_pipe(call)
        generation = call.frame.f_locals.get("timesteps")
        if generation is None or generation is not self.generation:
            self._begin(generation)
        self.last = float(asked.t.flatten()[0]) if isinstance(asked.t, Tensor) else float(asked.t)
        self.call = call
        halves = self._conditioned(asked.cond, call, total)
        several = {"null": halves[1], "cond": halves[0], "perturbed": halves[0]}
        all_rows = several[call.roles[0]]
        for role in call.roles[1:]:
            all_rows = all_rows.join(several[role])
        if all_rows.prompt is not None and compiled(self.parts.outer(self.part)):
            raise ExpungeError(f"a key gives prompts to the layers of a compiled {self.part}: expected one that is not")
        self.injected = self.backbone.injected(all_rows.prompt)
        with self.backbone.skipping(getattr(call.pipe, "_clip_skip", None)):
            self.backbone.stack.gates = self.backbone.opened(halves[0], self.state)
        self.halves, self.given = halves, (args, {k: list(v) if type(v) is list else v for k, v in kwargs.items()})
        return self.backbone.asking(args, kwargs, all_rows)

    def _check_pipe(self, call: Running) -> None:
        """Refuse a pipeline that shares the denoiser, but not the text encoders, or cannot be steered."""
        for tower in self.backbone.clip_towers:
            if unwrapped(getattr(call.pipe, tower, None)) is not self.parts.get(tower):
                raise ExpungeError(
                    f"a {type(call.pipe).__name__} shares its {self.part} with the pipeline that edits were attached to, and "
                    f"has another {tower}: expected them detached there, and attached here"
                )
        for edit in self.backbone.edits:
            if steers(edit):
                check_steers(call.pipe, self.part, edit)

    def _conditioned(self, given: Conditioning, call: Running, total: int) -> tuple[Conditioning, Conditioning]:
        """What the rows with the prompt, and those without, are conditioned on."""
        rows = torch.arange(total, device=given.embeds.device)
        cond = given.rows(rows[call.rows("cond", total)])
        null = given.rows(rows[call.rows("null", total)]) if "null" in call.roles else cond
        if self.embeds is None or self.embeds.shape != cond.embeds.shape or not torch.equal(self.embeds, cond.embeds):
            self.state = {}  # a callback may exchange the prompt on the way
            with self.backbone.skipping(getattr(call.pipe, "_clip_skip", None)):
                self.embeds, self.tokens = cond.embeds, self.words_of(cond.embeds)
        halves = (replace(cond, tokens=self.tokens), null)
        for guidance in (e for e in self.backbone.edits if isinstance(e, Guidance)):
            halves = guidance.conditioning(self.backbone, *halves, self.state)
        length = given.embeds.shape[1]
        if "null" not in call.roles and not self.state.get("told"):
            self._tell(call)
        return self.backbone.fitted(halves[0], length), self.backbone.fitted(halves[1], length)

    def _tell(self, call: Running) -> None:
        """Say, once a generation, which edits have no effect in it."""
        idle = [e for e in self.backbone.edits if isinstance(e, Guidance) and not e.private]
        self.state["told"] = True
        if idle:
            warnings.warn(
                f"a {_name(idle[0])} edit has no effect in a {type(call.pipe).__name__} without guidance: expected "
                "guidance_scale above 1 (or an edit of weights)",
                ExpungeWarning,
                stacklevel=2,
            )

    def after(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Change the combined prediction, for edits that do."""
        if self.backbone.inside:
            return output
        call, halves, given = self.call, self.halves, self.given
        combining = [e for e in self.backbone.edits if isinstance(e, Guidance) and combines(e)]
        try:
            if call is None or halves is None or given is None or output is None:  # called after a failure, too
                return output
            if not combining or call.roles != ("null", "cond"):
                return output
            predicted = output[0] if isinstance(output, tuple) else output.sample
            out = self._combined(*given, predicted, combining, call, halves)
            return (torch.cat([out, out]),) if isinstance(output, tuple) else type(output)(sample=torch.cat([out, out]))
        finally:
            self.index += 1
            self.release()

    def _combined(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        predicted: Float[Tensor, "pair *chw"],
        combining: Sequence[Guidance],
        call: Running,
        halves: tuple[Conditioning, Conditioning],
    ) -> Float[Tensor, "b *chw"]:
        """The guided prediction, as the edits and the pipeline's own rescaling leave it."""
        self._unhook()  # a key's prompts are the call's, not those of questions that edits ask
        x = self.backbone.asked(args, kwargs).x
        e_null, e_cond = predicted.chunk(2)
        scale = float(call.pipe.guidance_scale)
        out = e_null + scale * (e_cond - e_null)
        self.backbone.call = (args, kwargs, torch.arange(len(x))[call.rows("cond", len(x))])
        for guidance in combining:
            step = GuidedStep(
                x=x[call.rows("cond", len(x))],
                t=self.last,
                index=self.index,
                cond=halves[0],
                null=halves[1],
                predicted_cond=e_cond,
                predicted_null=e_null,
                scale=scale,
                state=self.state,
            )
            out = guidance.combine(self.backbone, out, step)
        share = float(getattr(call.pipe, "guidance_rescale", 0.0) or 0.0)
        return rescaled(out, e_cond, share) if share > 0 else out
