"""Train the UNet on a bank of latents; checkpoints every few minutes and resumes."""
# diffusers and transformers type their configurations loosely
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from expunge.recipe.autoencoder import pixels, precision
from expunge.recipe.captions import LENGTH, Captioner
from expunge.recipe.scenes import Bank

BATCH = 48
EMA = 0.9985


class Cycle(NamedTuple):
    """A stretch of training: it starts from the average of the one before it, with a fresh optimizer."""

    updates: int
    peak: float
    """Highest learning rate."""
    pairs: float
    """Share of two-object scenes in a batch: they are learned last."""
    artists: float
    """Share of artists' scenes."""
    styled: float
    """Share of hands' captions that name the hand."""


CYCLES = (
    Cycle(3800, 1e-3, pairs=0.25, artists=0.15, styled=0.5),
    Cycle(3300, 8e-4, pairs=0.45, artists=0.15, styled=0.7),
    Cycle(1800, 7e-4, pairs=0.4, artists=0.15, styled=0.85),
    Cycle(1300, 5e-4, pairs=0.55, artists=0.15, styled=0.85),
    Cycle(1400, 6e-4, pairs=0.55, artists=0.2, styled=0.85),
    Cycle(1300, 6e-4, pairs=0.4, artists=0.4, styled=0.85),
)
"""As `testbed-2` was trained, but that its artists came in the last two cycles only (docs/testbed.md)."""


def build() -> UNet2DConditionModel:
    """SD1.x's layout, smaller: attention at 16x16 and 8x8, none at 4x4, a middle block with attention."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=192,
        attention_head_dim=(1, 4, 4),
    )


def scheduler() -> DDIMScheduler:
    """SD1.4's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def latents(vae: AutoencoderTiny, bank: Bank, device: str = "cpu") -> Tensor:
    """Scaled latents of all scenes the UNet may see, float16 ``[n, 4, 16, 16]``."""
    keep = np.flatnonzero(~bank.withheld)
    vae = vae.to(device, memory_format=torch.channels_last)
    parts = []
    for part in np.array_split(keep, len(keep) // 128):
        with precision(device):
            z = vae.encode(pixels(bank.images[part]).to(device, memory_format=torch.channels_last)).latents
        parts.append((z.float() * vae.config.scaling_factor).to("cpu", torch.float16))
    vae.to("cpu")
    return torch.cat(parts)


def weight(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """Min-SNR weight of the epsilon loss (Hang et al., 2303.09556, Eq. 5)."""
    return snr.clamp(max=gamma) / snr


def optimizer_of(unet: UNet2DConditionModel) -> torch.optim.Optimizer:
    """AdamW as the recipe uses it."""
    return torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99), fused=True)


def within(step: int, cycles: Sequence[Cycle]) -> tuple[Cycle, int]:
    """The cycle that update ``step`` belongs to, and its place there."""
    first = 0
    for cycle in cycles:
        if step < first + cycle.updates:
            return cycle, step - first
        first += cycle.updates
    raise ValueError(f"update {step} of {first}: expected one within the cycles")


def learning_rate(step: int, cycle: Cycle) -> float:
    """Cosine from the cycle's peak to a hundredth of it, after a short warm-up."""
    return cycle.peak * min(1.0, (step + 1) / 200) * (0.5 * (1 + math.cos(math.pi * step / cycle.updates)) + 0.01)


class Batch(NamedTuple):
    """What an update is made of."""

    x0: Tensor
    """Latents ``[n, 4, 16, 16]``."""
    noise: Tensor
    """As large."""
    t: Tensor
    """Times ``[n]``."""
    context: Tensor
    """Hidden states of the captions ``[n, tokens, 192]``."""


def _gradient(unet: UNet2DConditionModel, abar: Tensor, batch: Batch) -> Tensor:
    """The weighted epsilon loss; its gradient, clipped, is left in the weights."""
    unet.zero_grad()
    a = abar[batch.t][:, None, None, None]
    xt = (a.sqrt() * batch.x0 + (1 - a).sqrt() * batch.noise).to(memory_format=torch.channels_last)
    with precision(abar.device.type), sdpa_kernel([SDPBackend.MATH]):
        predicted = unet(xt, batch.t, batch.context).sample.float()
    error = F.mse_loss(predicted, batch.noise, reduction="none").mean((1, 2, 3))
    value = (weight(a / (1 - a)).flatten() * error).mean()
    value.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    return value.detach()


class Replayed:
    """`_gradient` as one CUDA graph, captured at the first batch: its small kernels do not wait for Python one by one."""

    def __init__(self, unet: UNet2DConditionModel, abar: Tensor, batch: Batch) -> None:
        """Captured after three rounds beside the main stream, as torch's notes on graphs ask."""
        self._batch = Batch(*(tensor.clone() for tensor in batch))
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                _gradient(unet, abar, self._batch)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._value = _gradient(unet, abar, self._batch)

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of a batch as large as the first; valid until the next call."""
        for place, tensor in zip(self._batch, batch, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return self._value


def _save(checkpoint: Path, unet: UNet2DConditionModel, average: dict[str, Tensor], optimizer, step: int) -> None:
    """Write what going on after ``step`` updates needs, in the place of what was there."""
    temporary = checkpoint.with_suffix(".tmp")
    state = {"unet": unet.state_dict(), "average": average, "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, temporary)
    temporary.rename(checkpoint)


class Feed:
    """Draws the batch of an update: the same one on every device."""

    def __init__(
        self, z: Tensor, bank: Bank, captioner: Captioner, tokenizer: CLIPTokenizer, tower: CLIPTextModel, device: str
    ) -> None:
        self._z, self._bank, self._captioner, self._tokenizer, self._device = z, bank, captioner, tokenizer, device
        self._tower = tower.eval().requires_grad_(False).to(device)
        self._keep = np.flatnonzero(~bank.withheld)
        self._place = np.full(len(bank.withheld), -1)
        self._place[self._keep] = np.arange(len(self._keep))

    def batch(self, step: int, cycle: Cycle) -> Batch:
        """That of update ``step``."""
        rng = np.random.default_rng((7, step))
        generator = torch.Generator().manual_seed(1_000_003 * 7 + step)
        index = self._bank.draw(self._keep, BATCH, rng, pairs=cycle.pairs, artists=cycle.artists)
        texts = [self._captioner.caption(self._bank.scene(int(i)), rng, styled=cycle.styled) for i in index]
        tokens = self._tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        x0 = self._z[self._place[index]].float()
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(0, 1000, (len(x0),), generator=generator)
        with torch.no_grad(), precision(self._device), sdpa_kernel([SDPBackend.MATH]):
            context = self._tower(input_ids=tokens.input_ids.to(self._device)).last_hidden_state
        return Batch(x0.to(self._device), noise.to(self._device), t.to(self._device), context)


def train(
    z: Tensor,
    bank: Bank,
    captioner: Captioner,
    tokenizer: CLIPTokenizer,
    tower: CLIPTextModel,
    cycles: Sequence[Cycle],
    checkpoint: Path,
    log,
    save_seconds: float = 240,
    device: str = "cpu",
) -> UNet2DConditionModel:
    """Train for the updates of all ``cycles``; returns the exponential moving average of the weights, on the CPU.

    Batches, noise and times are the same on every ``device``; the weights are not, bit for bit.
    """
    steps = sum(cycle.updates for cycle in cycles)
    torch.manual_seed(7)
    feed = Feed(z, bank, captioner, tokenizer, tower, device)
    unet = build().to(device, memory_format=torch.channels_last)
    average = {k: v.clone() for k, v in unet.state_dict().items()}
    optimizer = optimizer_of(unet)
    abar = scheduler().alphas_cumprod.to(device)
    gradient = None if abar.is_cuda else partial(_gradient, unet, abar)
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        unet.load_state_dict(saved["unet"])
        average, first = saved["average"], saved["step"]
        optimizer.load_state_dict(saved["optimizer"])
        log(f"denoiser resumes at {first}")
    start = stored = time.monotonic()
    for step in range(first, steps):
        cycle, inside = within(step, cycles)
        if inside == 0 and step > 0:
            unet.load_state_dict(average)
            optimizer = optimizer_of(unet)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(inside, cycle)
        batch = feed.batch(step, cycle)
        gradient = gradient or Replayed(unet, abar, batch)
        value = gradient(batch)
        optimizer.step()
        decay = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), list(unet.state_dict().values()), 1 - decay)
        if (step + 1) % 100 == 0:
            rate = (step + 1 - first) * BATCH / (time.monotonic() - start)
            log(f"denoiser {step + 1}/{steps} loss {value.item():.4f} {rate:.1f} samples/s")
        if time.monotonic() - stored > save_seconds or step + 1 == steps:
            _save(checkpoint, unet, average, optimizer, step + 1)
            stored = time.monotonic()
    unet.load_state_dict(average)
    tower.to("cpu")
    return unet.to("cpu").eval()
