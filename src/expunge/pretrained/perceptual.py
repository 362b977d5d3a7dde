"""How far apart two images look: LPIPS, or the testbed's stand-in for it."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from expunge import testbed
from expunge.core.errors import ExpungeError, unknown
from expunge.core.metric import Pair
from expunge.pretrained import weights as stored
from expunge.testbed.networks import as_input

NETWORKS = ("testbed", "alex")
Resolution = Literal["full", "64"]
BATCH = 50


class Perceptual(NamedTuple):
    """A distance of two images of one size."""

    of: Callable[[UInt8[Tensor, "b H W 3"], UInt8[Tensor, "b H W 3"]], Float[Tensor, "b"]]
    instrument: dict[str, str]
    """Network, weights and preprocessing, for the record."""

    @torch.no_grad()
    def distances(self, pairs: Sequence[Pair]) -> list[float]:
        """Distances of pairs of stored images, in order.

        Raises:
            ExpungeError: if the two of a pair are not of one size.
        """
        return [number for one, other in _batches(pairs) for number in self.of(one, other).tolist()]


class Batch(NamedTuple):
    """Images, and in the same order those that they are compared with."""

    one: UInt8[Tensor, "b H W 3"]
    other: UInt8[Tensor, "b H W 3"]


def _batches(pairs: Sequence[Pair]) -> Iterator[Batch]:
    """The pixels of pairs in order, in batches of equally large images."""
    waiting: list[list[Tensor]] = []
    for pair in pairs:
        both = [shot.pixels() for shot in pair]
        if both[0].shape != both[1].shape:
            sizes = [f"{height} x {width}" for height, width, _ in (image.shape for image in both)]
            raise ExpungeError(
                f"'{pair.shot.path.name}' is {sizes[0]} and the reference's '{pair.other.path.name}' {sizes[1]}: expected two "
                "images of one size"
            )
        if waiting and (len(waiting) == BATCH or both[0].shape != waiting[0][0].shape):
            yield Batch(*map(torch.stack, zip(*waiting, strict=True)))
            waiting = []
        waiting.append(both)
    if waiting:
        yield Batch(*map(torch.stack, zip(*waiting, strict=True)))


def perceptual(network: str, weights: str = stored.OFFICIAL, resolution: Resolution = "full") -> Perceptual:
    """Open ``testbed``, or ``alex``: LPIPS in AlexNet with the trunk's weights named.

    Raises:
        ExpungeError: for another network, or weights that cannot be had.
    """
    if network not in NETWORKS:
        raise unknown("perceptual network", network, NETWORKS)
    return _lpips(weights, resolution) if network == "alex" else _testbed()


def _testbed() -> Perceptual:
    net = testbed.network("features")
    told = {"network": f"{testbed.VERSION} features", "preprocessing": "area resize to 64 x 64"}
    return Perceptual(lambda one, other: distances(net.maps(as_input(one)), net.maps(as_input(other))), told)


def distances(first: Iterable[Tensor], second: Iterable[Tensor]) -> Float[Tensor, "b"]:
    """Half the squared distance of two images' unit feature vectors, averaged over the places of each map, then over maps.

    (1 minus their cosine, but where a vector is zero: two zeros are the same.)
    """
    unit = nn.functional.normalize
    pairs = zip(list(first), list(second), strict=True)
    layers = [(unit(u.float(), dim=1) - unit(v.float(), dim=1)).square().sum(1).mean((1, 2)) / 2 for u, v in pairs]
    return torch.stack(layers).mean(0)


def _lpips(weights: str, resolution: Resolution) -> Perceptual:
    """LPIPS 0.1: the package ships the learned heads; AlexNet's trunk is torchvision's."""
    package = stored.package("lpips", "metrics", "the network alex")
    models = stored.package("torchvision.models", "metrics", "the network alex")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision by a name that is going away
        net = stored.untrained(lambda: package.LPIPS(net="alex", pnet_rand=True, verbose=False))
    if weights != stored.RANDOM:
        loaded = stored.load(weights, models.AlexNet_Weights.IMAGENET1K_V1.url, "torchvision's AlexNet")
        trunk = {k: v for k, v in loaded.tensors.items() if k.startswith("features.")}
        stored.fill(net.net, {_sliced(net.net, name): t for name, t in trunk.items()}, "torchvision's AlexNet")
    told = {
        "network": "LPIPS 0.1, AlexNet",
        "weights": stored.origin(weights),
        "preprocessing": "[-1, 1], " + ("full resolution" if resolution == "full" else "bilinear to 64 x 64"),
    }

    def read(images: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b 3 h w"]:
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        small = (64, 64)
        return x if resolution == "full" else nn.functional.interpolate(x, small, mode="bilinear", antialias=True)

    return Perceptual(lambda one, other: net(read(one), read(other))[:, 0, 0, 0], told)


def _sliced(trunk: nn.Module, name: str) -> str:
    """What LPIPS, which cuts the trunk into slices, calls torchvision's tensor ``features.N.…``."""
    rest = name.removeprefix("features.")
    return next((k for k in trunk.state_dict() if re.sub(r"^slice\d\.", "", k) == rest), name)
