"""The testbed's image networks: judges A and B, the text tower's image partner, and the feature net."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn


def _residual(c_in: int, c_out: int, stride: int) -> nn.Module:
    return _Residual(c_in, c_out, stride)


def _plain(c_in: int, c_out: int, stride: int) -> nn.Module:
    pool: list[nn.Module] = [nn.MaxPool2d(2)] if stride == 2 else []
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(), *pool)


def _smooth(c_in: int, c_out: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class Architecture(NamedTuple):
    """How an image network is built."""

    block: Callable[[int, int, int], nn.Module]
    widths: tuple[int, ...]
    """Channels after each halving of the side, from 32x32 down."""
    depth: int
    """Blocks at each size."""


ARCHITECTURES = {
    "judge_a": Architecture(_residual, (40, 80, 160, 224), 1),
    "judge_b": Architecture(_smooth, (24, 48, 96, 160), 2),
    "partner": Architecture(_residual, (32, 64, 128, 256), 1),
    "features": Architecture(_plain, (24, 48, 96, 128), 1),
}
"""By name; each is trained with its own seed, on real drawings only."""


def as_input(images: Tensor) -> Tensor:
    """What the networks read, float ``[b, 3, 64, 64]`` in [-1, 1], of images uint8 ``[b, H, W, 3]`` of any size."""
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return x if x.shape[-2:] == (64, 64) else nn.functional.interpolate(x, (64, 64), mode="area")


def opened(architecture: str, tensors: dict[str, Tensor]) -> "Recognizer":
    """A trained network, in float32 and ready to answer; its tensors say what it is asked."""
    heads = {k.split(".")[1]: len(v) for k, v in tensors.items() if k.startswith("heads.") and k.endswith(".bias")}
    net = Recognizer(architecture, heads)
    net.load_state_dict({k: v.to(net.state_dict()[k].dtype) for k, v in tensors.items()})
    return net.eval().requires_grad_(False)


class Recognizer(nn.Module):
    """An image network with one linear head per question (objects, style, valid, background)."""

    def __init__(self, architecture: str, heads: dict[str, int]) -> None:
        super().__init__()
        block, widths, depth = ARCHITECTURES[architecture]
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        channels = [widths[0], *widths]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(block(c_in if i == 0 else c_out, c_out, 2 if i == 0 and level > 0 else 1) for i in range(depth)),
            )
            for level, (c_in, c_out) in enumerate(zip(channels, widths, strict=False))
        )
        self.heads = nn.ModuleDict({name: nn.Linear(widths[-1], size) for name, size in heads.items()})

    @property
    def asks(self) -> dict[str, int]:
        """How many answers each question has."""
        return {name: head.out_features for name, head in self.heads.items() if isinstance(head, nn.Linear)}

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """Feature maps of ``x`` (float ``[b, 3, 64, 64]`` in [-1, 1]), finest first."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            yield x

    def features(self, x: Tensor) -> Tensor:
        """Pooled features, ``[b, width]``."""
        *_, last = self.maps(x)
        return last.mean((2, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of every head."""
        pooled = self.features(x)
        return {name: head(pooled) for name, head in self.heads.items()}
