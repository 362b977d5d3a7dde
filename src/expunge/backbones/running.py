"""The pipeline of a user's that is calling the denoiser, and which edits its loop can carry."""

import inspect
import sys
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.backbones.held import replaced_forward, unwrapped
from expunge.core.adapter import Adapter
from expunge.core.conditioning import Conditioning
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Guidance, asks


class Running(NamedTuple):
    """The pipeline whose loop asks the denoiser, and what it asks."""

    pipe: Any
    frame: FrameType
    roles: tuple[str, ...]
    """What each equal part of the rows is: ``null``, ``cond``, or ``perturbed`` (PAG's, which has the prompt, too)."""
    other: Conditioning | None = None
    """What the null is conditioned on, in a pipeline that asks for it in a second call (FLUX with ``true_cfg_scale``)."""

    def rows(self, role: str, total: int) -> slice:
        """The rows of a role."""
        each = total // len(self.roles)
        if role not in self.roles:  # it is the pipeline's other call's
            return slice(0, 0)
        first = self.roles.index(role) * each
        return slice(first, first + each)

    @property
    def last(self) -> bool:
        """Whether it is the last call of its denoising step."""
        return self.other is None or "null" in self.roles

    @property
    def scale(self) -> float:
        """The scale by which the pipeline combines predictions."""
        return float(self.frame.f_locals["true_cfg_scale"] if self.other is not None else self.pipe.guidance_scale)

    @property
    def rescale(self) -> float:
        """How much of the pipeline's own rescaling it asks for (``guidance_rescale``), which some pipelines tell nobody."""
        told = self.frame.f_locals.get("guidance_rescale", getattr(self.pipe, "guidance_rescale", 0.0))
        return float(told or 0.0)


def running(denoiser: torch.nn.Module, part: str, total: int, embeds: Tensor) -> Running:
    """Which pipeline is calling ``denoiser`` on ``total`` rows with the texts ``embeds``: by the call itself, as many share it.

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
    if in_two_calls(pipe):
        return _one_of_two(pipe, frame, embeds)
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


def in_two_calls(pipe: Any) -> bool:
    """Whether a pipeline asks for the two predictions of a pair one after the other, as FLUX's do."""
    return "true_cfg_scale" in inspect.signature(type(pipe).__call__).parameters


def _one_of_two(pipe: Any, frame: FrameType, embeds: Tensor) -> Running:
    """A call of such a pipeline: for the prompt, or away from it."""
    known = frame.f_locals
    if not known.get("do_true_cfg"):
        return Running(pipe, frame, ("cond",))
    negative, pooled = known.get("negative_prompt_embeds"), known.get("negative_pooled_prompt_embeds")
    if not isinstance(negative, Tensor):
        raise ExpungeError(
            f"a {type(pipe).__name__} does not say what it is guided away from: expected a pipeline that does, or edits that "
            "do not steer guidance"
        )
    other = Conditioning(embeds=negative, pooled=pooled)
    return Running(pipe, frame, ("null",) if embeds is negative else ("cond",), other)


def check_steers(pipe: Any, part: str, edit: Edit) -> None:
    """Refuse an edit that a pipeline cannot carry in its own loop.

    Raises:
        ExpungeError: naming the pipeline and why.
    """
    if not (hasattr(type(pipe), "do_classifier_free_guidance") or in_two_calls(pipe)):
        raise ExpungeError(
            f"a {type(pipe).__name__} does not say which rows are guided: expected a pipeline that does, or an edit of weights"
        )
    if not asks(edit):
        return
    if hasattr(type(pipe), "do_perturbed_attention_guidance"):
        raise ExpungeError(
            f"a {type(pipe).__name__} perturbs a part of the rows that its {part} is asked, and a {method_of(edit)} edit asks "
            "it questions of its own: expected a pipeline without perturbed attention, or another edit"
        )
    if replaced_forward(getattr(pipe, part)):
        raise ExpungeError(
            f"the {part} runs somebody else's code that keeps what it computed (DeepCache, `enable_cache`?), and a "
            f"{method_of(edit)} edit asks it questions of its own: expected that to be switched off, or another edit"
        )


def steers(edit: Edit) -> bool:
    """Whether an edit has to know the rows of a call."""
    return isinstance(edit, Guidance) or (isinstance(edit, Adapter) and edit.gate is not None)


def method_of(edit: Edit) -> str:
    """What an edit is called in a message: its method, or its kind."""
    return edit.eraser if isinstance(edit, Guidance) else edit.kind
