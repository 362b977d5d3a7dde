"""Sampling: our own loop over the scheduler that a model comes with, from noise or from a given image."""

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.backbones import latent_space
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.guidance import pairing
from expunge.core.query import Images, Query, Start

if TYPE_CHECKING:
    from expunge.backbones.pipeline import PipelineBackbone


SPACED = ("karras", "exponential", "beta")
"""Spacings of Euler's noise levels after which it finds its timesteps anew."""
ASTRAY: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        "the more noise is left, the more steps there are: expected solver_order 2",
    ),
    (
        "EulerDiscreteScheduler",
        {
            "interpolation_type": "log_linear",
            "timestep_type": "discrete",
            **{f"use_{how}_sigmas": False for how in SPACED},
        },
        "the model is told other noise levels than there are: expected interpolation_type linear with use_exponential_sigmas",
    ),
    (
        "FlowMatchEulerDiscreteScheduler",
        {"stochastic_sampling": True},
        "images are less varied than the model's, at any number of steps: expected it off",
    ),
)
"""Samplers of diffusers that do not draw what a model knows: class, configuration, and what is wrong (`findings/` has each)."""


class Beginning(NamedTuple):
    """Where sampling begins, and the timesteps that are left."""

    x: Float[Tensor, "b c h w"]
    timesteps: Tensor


@torch.no_grad()
def generate(backbone: "PipelineBackbone", queries: Sequence[Query]) -> Images:
    """One image a query, in one batch; see `Backbone.generate`.

    Raises:
        ExpungeError: if the queries cannot be sampled in one batch, or the model cannot be sampled in this loop.
    """
    _check(backbone, queries)
    x = _sampled(backbone, queries)
    return Images(backbone.decode(x), x)


@torch.no_grad()
def begun(backbone: "PipelineBackbone", query: Query, steps: int) -> Start:
    """Where a query stands after so many steps, as a start of the same query; see `Backbone.begun`."""
    _check(backbone, [query])
    x, noise = _sampled(backbone, [query], steps), backbone.noise(query.seed)
    left = (query.steps - steps) / query.steps
    near = (left, math.nextafter(left, 1), math.nextafter(left, 0))  # families round the product differently
    strength = next(s for s in near if backbone.skipped(query.steps, s) == steps)
    again = _scheduler(backbone, query.steps, midway=True)
    at, nothing = _begin_at(again, steps), torch.zeros_like(noise)
    origin = (x - _noised(again, nothing, noise, at)) / _noised(again, torch.ones_like(noise), nothing, at)
    return Start(image=origin[0], strength=strength)


def _sampled(
    backbone: "PipelineBackbone", queries: Sequence[Query], steps: int | None = None
) -> Float[Tensor, "b c h w"]:
    """Latents of queries, after all of their denoising steps or the first so many."""
    first = queries[0]
    skipped = 0 if first.start is None else backbone.skipped(first.steps, first.start.strength)
    scheduler = _scheduler(backbone, first.steps, midway=skipped > 0 or steps is not None)
    if wrong := _astray(scheduler, first.steps):
        warnings.warn(f"with the sampler of {backbone.name} {wrong}", ExpungeWarning, stacklevel=5)
    cond = backbone.encode_each([q.prompt for q in queries], first.learned)
    null = backbone.encode([first.negative]) if first.negative else backbone.unconditional()
    generators = [torch.Generator().manual_seed(q.seed) for q in queries]
    noise = torch.cat([latent_space.drawn(backbone, generator) for generator in generators])
    x, timesteps = _beginning(backbone, scheduler, queries, noise)
    # one that has a seed of its own heeds no generator (`findings/sde_draws_apart_from_the_generator.sh`)
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = [q.seed % 2**63 for q in queries]
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    state: dict[str, Any] = {}
    # latents are on their way already; a picture begins one, as diffusers' own image to image counts
    begun = first.start is not None and first.start.image.is_floating_point()
    before = skipped * scheduler.order if begun else 0
    walked = timesteps if steps is None else timesteps[: steps * scheduler.order]
    for call, (t, number) in enumerate(zip(walked, walked.tolist(), strict=True), before):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        how = (first.guidance, state, first.true_cfg)
        predicted = backbone.guided(scaled, number, call, cond, null, *how).combined
        x = scheduler.step(predicted, t, x, return_dict=False, **options)[0]
    return x


def _begin_at(scheduler: Any, skipped: int) -> Tensor:
    """Have a scheduler begin after so many steps; the timestep where it does."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped * scheduler.order)
    return scheduler.timesteps[skipped * scheduler.order :][:1]


def _noised(
    scheduler: Any, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], at: Tensor
) -> Float[Tensor, "b c h w"]:
    """Latents with the noise of a timestep, as a scheduler adds it."""
    times = at.expand(len(noise))
    if hasattr(scheduler, "scale_noise"):  # a flow's, which has the same under another name
        return scheduler.scale_noise(latents, times, noise)
    return scheduler.add_noise(latents, noise, times)


def _check(backbone: "PipelineBackbone", queries: Sequence[Query]) -> None:
    """Refuse what this loop cannot sample, and say which edits have no effect in it."""
    first = queries[0]
    if not all(q.alike(first) for q in queries):
        raise ExpungeError(
            "queries of one batch differ in guidance, steps, negative prompt, strength or learned word: expected the same "
            "for all"
        )
    if backbone.config(backbone.denoiser).get("time_cond_proj_dim") is not None:
        raise ExpungeError(
            f"{backbone.name} was distilled to read the scale of guidance (LCM): expected a guided model (or a pipeline "
            "that you hold, to which edits can be attached)"
        )
    name, scale = ("true_cfg", first.true_cfg) if backbone.supports("distilled") else ("guidance", first.guidance)
    if name == "guidance" and first.true_cfg != 1:
        raise ExpungeError(
            f"true_cfg {first.true_cfg:g} for {backbone.name}, whose guidance is a pair of predictions: expected it as guidance"
        )
    idle = [f"a {e.eraser} edit" for e in pairing(backbone.edits)]
    if name == "true_cfg" and first.negative:
        idle.append(f"the negative prompt '{first.negative}'")
    if scale <= 1 and idle:
        warnings.warn(
            f"{idle[0]} has no effect at {name} {scale:g}, which is none: expected more than 1",
            ExpungeWarning,
            stacklevel=5,
        )


def _scheduler(backbone: "PipelineBackbone", steps: int, *, midway: bool) -> Any:
    """A scheduler of our own, as the model's is configured; ``midway``, one that may begin or stop on the way.

    PNDM with its Runge-Kutta steps may not. It counts calls, so it takes those steps wherever it begins, with the widths of
    the first ones (`findings/pndm_from_the_middle.sh`). Midway it leaves them out, as Stable Diffusion's own PNDM always does.
    """
    template = backbone.component("scheduler")
    most = template.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise ExpungeError(f"{steps} denoising steps: expected 1 to {most}")
    own = {"skip_prk_steps": True} if midway and "skip_prk_steps" in template.config else {}
    scheduler = type(template).from_config(template.config, **own)
    backbone.space(scheduler, steps)
    if hasattr(scheduler, "alphas_cumprod"):
        check_first(backbone, steps, float(scheduler.timesteps.max()), most)
    return scheduler


def check_first(backbone: "PipelineBackbone", steps: int, first: int | float, most: int) -> None:
    """Refuse steps of which the ``first`` one's timestep leads past the last of ``most``, by the sampler's offset.

    Raises:
        ExpungeError: naming the number of steps.
    """
    if first > most - 1:
        raise ExpungeError(
            f"{steps} denoising steps, of which {backbone.name} has no timestep for the first: expected fewer"
        )


def begins_late(steps: int, first: int | float, most: int) -> bool:
    """Whether steps whose ``first`` timestep is so far from the last of ``most`` take noise for an image there in part."""
    return first < most * (0.95 - 1.5 / steps)


def _astray(scheduler: Any, steps: int) -> str:
    """Why a sampler does not draw what a model knows, as far as that is known; nothing if it does."""
    for name, config, wrong in ASTRAY:
        if type(scheduler).__name__ == name and all(scheduler.config.get(k) == v for k, v in config.items()):
            return f"({', '.join(f'{k} {v}' for k, v in config.items() if v)}) {wrong}"
    first, most = float(scheduler.timesteps.max()), scheduler.config.num_train_timesteps
    if scheduler.config.get("timestep_spacing") == "leading" and begins_late(steps, first, most):
        return (
            f"{steps} steps begin at timestep {first:.0f} of {most}, where an image should be there in part: expected fewer, "
            "or timestep_spacing trailing"
        )
    return ""


def _beginning(
    backbone: "PipelineBackbone", scheduler: Any, queries: Sequence[Query], noise: Float[Tensor, "b c h w"]
) -> Beginning:
    """Where sampling begins: at pure noise, or at a given image with the noise of a timestep on the way."""
    first = queries[0]
    if first.start is None:
        return Beginning(noise * getattr(scheduler, "init_noise_sigma", 1.0), scheduler.timesteps)
    skipped = backbone.skipped(first.steps, first.start.strength)
    if skipped == first.steps:
        raise ExpungeError(
            f"strength {first.start.strength} of {first.steps} steps leaves none: expected {1 / first.steps:.3g} or more"
        )
    at = _begin_at(scheduler, skipped)
    starts = torch.cat([_latents_of(backbone, q.start.image) for q in queries if q.start is not None]).to(noise)
    if starts.shape != noise.shape:
        given, wanted = tuple(starts.shape[1:]), tuple(noise.shape[1:])
        raise ExpungeError(
            f"an image of {given} as latents for {backbone.name}: expected {wanted}, an image of its size"
        )
    return Beginning(_noised(scheduler, starts, noise, at), scheduler.timesteps[skipped * scheduler.order :])


def _latents_of(backbone: "PipelineBackbone", image: Tensor) -> Float[Tensor, "1 c h w"]:
    """Scaled latents of a given image, which may be those already."""
    return backbone.encode_image(image[None]) if image.dtype == torch.uint8 else image[None].to(backbone.device)
