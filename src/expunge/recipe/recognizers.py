"""Train an image network on real drawings: which objects, which style, and whether it is a picture at all."""

import math
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.recipe.autoencoder import pixels, precision
from expunge.recipe.scenes import Bank
from expunge.testbed.networks import Recognizer

PAIRS = 0.4
"""Share of two-object scenes in a batch."""
ARTISTS = 0.2
"""Share of artists' scenes in a batch."""


def shuffle_patches(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Cut each image of ``[b, 3, 64, 64]`` into 16 patches and put them back, each image in an order of its own."""
    patches = F.unfold(x, 16, stride=16)
    order = torch.rand(len(x), patches.shape[-1], generator=generator).argsort(1)
    shuffled = patches.gather(2, order[:, None].expand_as(patches))
    return F.fold(shuffled, x.shape[-2:], 16, stride=16)


def negatives(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn a batch into what is no picture: a third noise, a third blanks, a third patch-shuffles."""
    third = len(x) // 3
    noise = torch.randn(x[:third].shape, generator=generator) * torch.rand(third, 1, 1, 1, generator=generator)
    noise = noise + 2 * torch.rand(third, 3, 1, 1, generator=generator) - 1
    blank = (2 * torch.rand(third, 3, 1, 1, generator=generator) - 1).expand(-1, -1, *x.shape[2:])
    blank = blank + 0.05 * torch.randn(blank.shape, generator=generator) * torch.rand(
        third, 1, 1, 1, generator=generator
    )
    return torch.cat([noise, blank, shuffle_patches(x[2 * third :], generator)]).clamp(-1, 1)


def augment(x: Tensor) -> Tensor:
    """Small rotations, scalings and shifts; colour, blur and noise: what separates a drawing from a generated image."""
    b = len(x)
    angle = (torch.rand(b) - 0.5) * 0.35
    scale = 1 + (torch.rand(b) - 0.5) * 0.3
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale * angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -scale * angle.sin(), scale * angle.sin()
    theta[:, :, 2] = (torch.rand(b, 2) - 0.5) * 0.2
    x = F.grid_sample(
        x, F.affine_grid(theta, list(x.shape), align_corners=False), padding_mode="border", align_corners=False
    )
    mix = torch.eye(3) + 0.12 * torch.randn(b, 3, 3)
    x = torch.einsum("bij,bjhw->bihw", mix, x) + 0.1 * torch.randn(b, 3, 1, 1)
    coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
    x = torch.lerp(x, coarse, torch.rand(b, 1, 1, 1) * (torch.rand(b, 1, 1, 1) < 0.5))
    return (x + 0.15 * torch.rand(b, 1, 1, 1) * torch.randn_like(x)).clamp(-1, 1)


def targets(bank: Bank, index: np.ndarray, n_objects: int) -> Tensor:
    """Multi-hot objects of the indexed scenes, float ``[b, n_objects]``."""
    objects = torch.from_numpy(bank.objects[index].astype(np.int64))
    hot = torch.zeros(len(index), n_objects + 1).scatter_(1, objects.where(objects >= 0, n_objects), 1.0)
    return hot[:, :n_objects]


def loss(logits: dict[str, Tensor], hot: Tensor, style: Tensor, background: Tensor, n_real: int) -> Tensor:
    """Sum of the heads' losses; style and background are asked of real scenes only."""
    total = F.binary_cross_entropy_with_logits(logits["objects"], hot, reduction="none").sum(1).mean()
    if "style" in logits:
        total = total + 0.5 * F.cross_entropy(logits["style"][:n_real], style)
    if "background" in logits:
        total = total + 0.5 * F.cross_entropy(logits["background"][:n_real], background)
    if "valid" in logits:
        truth = (torch.arange(len(hot)) < n_real).float()
        total = total + 0.5 * F.binary_cross_entropy_with_logits(logits["valid"][:, 0], truth)
    return total


def train(
    architecture: str,
    heads: dict[str, int],
    bank: Bank,
    steps: int,
    seed: int,
    log,
    keep: np.ndarray | None = None,
    start_from: dict[str, Tensor] | None = None,
    artists: float = ARTISTS,
) -> Recognizer:
    """Train for ``steps`` updates of 64 on the scenes ``keep`` (all by default), from scratch or from tensors.

    ``artists`` is the share of artists' scenes in a batch.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Recognizer(architecture, heads)
    if start_from is not None:
        net.load_state_dict(start_from)
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.02, fused=True)
    pool = np.arange(len(bank.images)) if keep is None else np.flatnonzero(keep)
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.005)
        index = bank.draw(pool, 64, rng, pairs=PAIRS, artists=artists)
        x = pixels(bank.images[index])
        fake = negatives(x[:9]) if "valid" in heads else x[:0]
        x = augment(torch.cat([x, fake])).to(memory_format=torch.channels_last)
        hot = F.pad(targets(bank, index, heads["objects"]), (0, 0, 0, len(fake)))
        style, background = (torch.from_numpy(a[index].astype(np.int64)) for a in (bank.styles, bank.backgrounds))
        with precision():
            logits = {k: v.float() for k, v in net(x).items()}
        value = loss(logits, hot, style, background, len(index))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            top = (
                (hot[: len(index)].gather(1, logits["objects"][: len(index)].argmax(1, keepdim=True)) > 0)
                .float()
                .mean()
            )
            log(
                f"{architecture} {step + 1}/{steps} loss {value.item():.3f} top-1 {top:.2f} {time.monotonic() - start:.0f} s"
            )
    return net.eval()


@torch.no_grad()
def accuracy(net: Recognizer, bank: Bank, index: np.ndarray) -> float:
    """Share of the indexed scenes whose highest-scoring object is in the scene."""
    hits = 0.0
    for part in np.array_split(index, max(1, len(index) // 256)):
        scores = net(pixels(bank.images[part]))["objects"]
        hits += float(targets(bank, part, scores.shape[1]).gather(1, scores.argmax(1, keepdim=True)).sum())
    return hits / len(index)
