"""Train the autoencoder: 64x64 pixels to 16x16x4 latents of about unit variance."""
# diffusers and transformers type their configurations loosely
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import math
import time

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from expunge import backbones
from expunge.recipe.scenes import Bank


def build() -> AutoencoderTiny:
    """An untrained f = 4 autoencoder."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=4,
    )


def precision(device: str = "cpu") -> torch.autocast:
    """Bfloat16 autocast where it is computed in; on other CPUs it is emulated, ten times slower than float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or backbones.fast_dtype() == "bfloat16")


def pixels(images: np.ndarray) -> Tensor:
    """uint8 ``[n, h, w, 3]`` to float ``[n, 3, h, w]`` in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def edges(x: Tensor) -> Tensor:
    """Horizontal and vertical differences, smoothed as Sobel's operator does."""
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=x.dtype) / 4
    kernel = torch.stack([sobel, sobel.T])[:, None].repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def crops(bank: Bank, count: int, rng: np.random.Generator) -> Tensor:
    """Random 32x32 crops: the autoencoder is local, so four times the updates cost the same."""
    rows, columns = rng.integers(0, 33, size=(2, count))
    chosen = rng.integers(len(bank.images), size=count)
    return pixels(
        np.stack([bank.images[i, r : r + 32, c : c + 32] for i, r, c in zip(chosen, rows, columns, strict=True)])
    )


def train(bank: Bank, steps: int, log) -> AutoencoderTiny:
    """L1 + 0.15 x Sobel L1; latents are pulled to zero mean and unit variance, so `scaling_factor` stays 1."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vae = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
        x = crops(bank, 36, rng).to(memory_format=torch.channels_last)
        with precision():
            z = vae.encoder(x)
            y = vae.decoder(z + 0.05 * torch.randn_like(z))
        z, y = z.float(), y.float()
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        spread = mean.square().mean() + std.log().square().mean()
        loss = F.l1_loss(y, x) + 0.15 * F.l1_loss(edges(y), edges(x)) + 0.01 * spread
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0:
            seconds = time.monotonic() - start
            log(f"autoencoder {step + 1}/{steps} loss {loss.item():.4f} psnr {psnr(y.detach(), x):.2f} {seconds:.0f} s")
    return vae.eval()


def psnr(y: Tensor, x: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(y.clamp(-1, 1), x)))
