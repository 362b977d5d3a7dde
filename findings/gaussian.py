"""Data of which a model's best answer is known: numbers with a spread of `SPREAD`. What a sampler draws should have it, too."""

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch

SPREAD = 0.7


def parted(x: torch.Tensor, signal: float, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The data and the noise that are to be expected in ``x``, which is ``signal`` of the one and ``noise`` of the other."""
    of = x.double() / (signal**2 * SPREAD**2 + noise**2)
    return (signal * SPREAD**2 * of).float(), (noise * of).float()


def epsilon(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The noise, at a time of Stable Diffusion's schedule: between whole ones its logarithm is interpolated, as samplers do."""
    levels = diffusers.DDIMScheduler(**SD).alphas_cumprod.double()
    logs, low = ((1 - levels) / levels).sqrt().log(), min(int(t), 998)
    sigma = float((logs[low] + (float(t) - low) * (logs[low + 1] - logs[low])).exp())
    signal = (1 + sigma**2) ** -0.5
    return parted(x, signal, signal * sigma)[1]


def flow(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The noise less the data, at a time of flow matching."""
    data, noise = parted(x, 1 - float(t) / 1000, float(t) / 1000)
    return noise - data


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def spread(scheduler: Any, steps: int, answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
    """That of 16,384 numbers which the sampler draws, as a part of the data's."""
    scheduler.set_timesteps(steps)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 4, 32, 32, generator=draw) * getattr(scheduler, "init_noise_sigma", 1.0)
    more = {"generator": draw} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        read = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(answer(read, t), t, x, **more).prev_sample
    return round(float(x.std()) / SPREAD, 2)
