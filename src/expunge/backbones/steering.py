"""Edits that are not in the weights, carried into a diffusers pipeline's own loop."""

import warnings
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.backbones.held import Pipeline, compiled, unwrapped
from expunge.backbones.running import Running, check_steers, in_two_calls, method_of, running, steers
from expunge.core import guidance
from expunge.core.adapter import open_gates
from expunge.core.attention import Evaluation
from expunge.core.conditioning import Conditioning
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.guidance import GuidedStep, of_words

if TYPE_CHECKING:
    from expunge.backbones.pipeline import PipelineBackbone

REMEMBERED = 32
"""Batches of texts whose words are remembered: a pipeline hands only their vectors on."""


def rescaled(guided: Float[Tensor, "b *chw"], cond: Float[Tensor, "b *chw"], share: float) -> Float[Tensor, "b *chw"]:
    """A guided prediction brought back to the spread of the conditional one, by a ``share`` (2305.08891, section 3.4)."""
    over = tuple(range(1, guided.ndim))
    like = guided * (cond.std(over, keepdim=True) / guided.std(over, keepdim=True))  # Eq. 15
    return share * like + (1 - share) * guided  # Eq. 16


def _asking_for_a_pair(pipe: Any) -> str:
    """What a call of a pipeline asks for two predictions with."""
    return "a negative_prompt and true_cfg_scale above 1" if in_two_calls(pipe) else "guidance_scale above 1"


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
        self.heeded = ExitStack()
        """What the layers heed in the call that is going on; closed, they heed its arguments alone."""
        self.call: Running | None = None
        self.halves: tuple[Conditioning, Conditioning] | None = None
        self.given: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        """The call's arguments as they were: a UNet takes a T2I-Adapter's residuals out of their list."""
        self._begin(None)

    def _begin(self, generation: object) -> None:
        """Another generation: nothing is known of it yet."""
        self.generation, self.index, self.last = generation, 0, -1.0
        self.state: dict[str, Any] = {}
        self.warned = False
        self.embeds: Tensor | None = None
        self.tokens: Tensor | None = None
        self.halves_of_step: tuple[Conditioning, Conditioning] | None = None
        """What the two predictions of a step are conditioned on, in a pipeline that asks for one after the other."""
        self.first: Tensor | None = None
        """The first of the two."""

    def hooks(self) -> list[Any]:
        """Hook the text encoder that reads tokens and the denoiser, as the pipeline calls them."""
        as_is = torch.compiler.disable  # they look at the call, which no tracing of a compiled module sees
        text, denoiser = self.parts.get(self.backbone.reader), self.parts.get(self.part)
        return [
            text.register_forward_pre_hook(as_is(self.read), with_kwargs=True),
            denoiser.register_forward_pre_hook(as_is(self.before), with_kwargs=True),
            denoiser.register_forward_hook(as_is(self.after), with_kwargs=True, always_call=True),
        ]

    def release(self) -> None:
        """Let the layers heed the arguments of calls alone again."""
        self.heeded.close()
        self.call, self.halves, self.given = None, None, None

    # words ------------------------------------------------------------------------------------------------------------
    def read(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the words that the text encoder reads: the pipeline hands only their vectors on."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and not self.backbone.texts.asking:
            self.texts.append(ids)

    def words_of(self, embeds: Float[Tensor, "b n d"], asked: Mapping[str, Any]) -> Int[Tensor, "b m"] | None:
        """Token ids of the texts that gave these vectors; None if one of them is no text's that was seen.

        ``asked`` are the arguments of the pipeline. T5 tells apart what CLIP does not (capitals, blanks), and may read fewer
        tokens than we would: its vectors after CLIP's are not compared where the pipeline made both of one text.
        """
        lengths = [ids.shape[1] for ids in self.texts if ids.shape[1] <= embeds.shape[1]]
        if not lengths:
            return None
        length = max(lengths)  # a call may have T5 read fewer tokens than one before
        ids = torch.cat([i for i in self.texts if i.shape[1] == length]).unique(dim=0)
        with torch.no_grad():
            known = self.backbone.encode(ids).embeds.to(embeds)
        if known.shape[1] > length and self.embeds is None and self._one_text(asked):
            embeds, known = embeds[:, :length], known[:, :length]
        if known.shape[1:] != embeds.shape[1:]:
            return None
        near = (embeds[:, None] - known[None]).flatten(2).norm(dim=-1) / known.flatten(1).norm(dim=-1)
        best = near.min(1)
        return ids[best.indices] if bool((best.values < 0.01).all()) else None

    def _one_text(self, asked: Mapping[str, Any]) -> bool:
        """Whether a pipeline was asked with prompts, which T5 reads, too, and no further than CLIP."""
        prompts = asked.get("prompt")
        if prompts is None or (asked.get("prompt_3") or prompts) != prompts:
            return False
        return not any(self.backbone.cut([prompts] if isinstance(prompts, str) else prompts))

    # a call of the denoiser ---------------------------------------------------------------------------------------------
    def before(
        self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change what the rows are conditioned on."""
        if self.backbone.asker.inside:
            return None
        self.release()
        asked = self.backbone.parse_call(args, kwargs)
        total = len(asked.x)
        call = running(self.parts.get(self.part), self.part, total, asked.cond.embeds)
        self._check_pipe(call)
        generation = call.frame.f_locals.get("timesteps")
        if generation is None or generation is not self.generation:
            self._begin(generation)
        times = torch.as_tensor(asked.t, device=asked.x.device).flatten()
        self.last = float(times[0])
        halves = self.halves_of_step if call.other is not None and call.last else None
        self.call = call
        halves = halves or self._conditioned(asked.cond, call, total)
        self.halves_of_step = halves
        several = {"null": halves[1], "cond": halves[0], "perturbed": halves[0]}
        all_rows = several[call.roles[0]]
        for role in call.roles[1:]:
            all_rows = all_rows.join(several[role])
        if all_rows.prompt is not None and compiled(self.parts.outer(self.part)):
            raise ExpungeError(f"a key gives prompts to the layers of a compiled {self.part}: expected one that is not")
        if "cond" in call.roles and any(guidance.looks(e) for e in self.backbone.edits):
            rows = call.rows("cond", total)
            with self.backbone.asker.repeating(args, kwargs, torch.arange(total)[rows]):
                guidance.looked(self.backbone, asked.x[rows], self.last, halves[0], self.state)
        with self.backbone.texts.skipping(getattr(call.pipe, "_clip_skip", None)):
            gates = open_gates(self.backbone, halves[0], of_words(self.state))
        evaluation = Evaluation(
            t=times.expand(total) if len(times) == 1 else times,
            index=self.index,
            prompted=call.rows("cond", total),
            gates=gates,
            hooks=guidance.attending(self.backbone, self.state),
        )
        with ExitStack() as heeded:
            heeded.enter_context(self.backbone.evaluating(evaluation))
            heeded.enter_context(self.backbone.asker.injecting(all_rows.prompt))
            changed = self.backbone.change_call(args, kwargs, all_rows)
            self.heeded = heeded.pop_all()
        self.halves, self.given = halves, (args, {k: list(v) if type(v) is list else v for k, v in kwargs.items()})
        return changed

    def _check_pipe(self, call: Running) -> None:
        """Refuse a pipeline that shares the denoiser, but not the text encoders, or cannot be steered."""
        for tower in dict.fromkeys([*self.backbone.clip_towers, self.backbone.reader]):
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
        null = given.rows(rows[call.rows("null", total)]) if "null" in call.roles else call.other or cond
        if self.embeds is None or self.embeds.shape != cond.embeds.shape or not torch.equal(self.embeds, cond.embeds):
            of_words(self.state).clear()  # a callback may exchange the prompt on the way; momentum goes on
            with self.backbone.texts.skipping(getattr(call.pipe, "_clip_skip", None)):
                self.embeds, self.tokens = cond.embeds, self.words_of(cond.embeds, call.frame.f_locals)
        unpaired = null is cond
        halves = (replace(cond, tokens=self.tokens), null)
        halves = guidance.conditioned(self.backbone, *halves, self.state)
        length = given.embeds.shape[1]
        if unpaired and not self.warned:
            self._warn(call)
        fitted = self.backbone.asker.fitted
        return fitted(halves[0], length), fitted(halves[1], length)

    def _warn(self, call: Running) -> None:
        """Say, once a generation, which edits have no effect in it."""
        idle = guidance.pairing(self.backbone.edits)
        self.warned = True
        if idle:
            warnings.warn(
                f"a {method_of(idle[0])} edit has no effect in a {type(call.pipe).__name__} without guidance: expected "
                f"{_asking_for_a_pair(call.pipe)} (or an edit of weights)",
                ExpungeWarning,
                stacklevel=2,
            )

    def after(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Change the combined prediction, for edits that do."""
        if self.backbone.asker.inside:
            return output
        call, halves, given = self.call, self.halves, self.given
        try:
            if call is None or halves is None or given is None or output is None:  # called after a failure, too
                return output
            if not any(guidance.combines(e) for e in self.backbone.edits):
                return output
            predicted = output[0] if isinstance(output, tuple) else output.sample
            if call.other is not None:
                changed = self._second(*given, predicted, call, halves)
            elif call.roles == ("null", "cond"):
                self.heeded.close()  # a key's prompts are the call's, not those of questions that edits ask
                e_null, e_cond = predicted.chunk(2)
                out = self._combined(*given, e_null, e_cond, call, halves)
                changed = torch.cat([out, out])
            else:
                return output
            return (changed,) if isinstance(output, tuple) else type(output)(sample=changed)
        finally:
            self.index += call is None or call.last
            self.release()

    def _second(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        predicted: Float[Tensor, "b *chw"],
        call: Running,
        halves: tuple[Conditioning, Conditioning],
    ) -> Float[Tensor, "b *chw"]:
        """What makes a pipeline that asks twice arrive at the guided prediction: the second answer is made to fit.

        Of ``null + scale * (cond - null)`` the pipeline has ``cond`` already; from the result follows what ``null`` must be.
        """
        if not call.last:
            self.first = predicted
            return predicted
        if self.first is None:
            return predicted
        self.heeded.close()
        out, scale = self._combined(args, kwargs, predicted, self.first, call, halves), call.scale
        return (out - scale * self.first) / (1 - scale)

    def _combined(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        e_null: Float[Tensor, "b *chw"],
        e_cond: Float[Tensor, "b *chw"],
        call: Running,
        halves: tuple[Conditioning, Conditioning],
    ) -> Float[Tensor, "b *chw"]:
        """The guided prediction, as the edits and the pipeline's own rescaling leave it."""
        x = self.backbone.parse_call(args, kwargs).x
        rows = slice(0, len(x)) if call.other is not None else call.rows("cond", len(x))
        step = GuidedStep(
            x=x[rows],
            t=self.last,
            index=self.index,
            cond=halves[0],
            null=halves[1],
            predicted_cond=e_cond,
            predicted_null=e_null,
            scale=call.scale,
            state=self.state,
        )
        with self.backbone.asker.repeating(args, kwargs, torch.arange(len(x))[rows]):
            out = guidance.combined(self.backbone, step)
        share = call.rescale
        return rescaled(out, e_cond, share) if share > 0 else out
