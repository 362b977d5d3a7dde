"""What image sets are compared by: Inception's pooled features, or those of the testbed's feature net."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expunge import testbed
from expunge.core.errors import ExpungeError, unknown
from expunge.core.query import Shot, batches
from expunge.pretrained import weights as stored
from expunge.testbed.networks import as_input

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
NETWORKS = ("testbed", "inception")
BATCH = 50


class Extractor(NamedTuple):
    """A network that gives one vector for an image."""

    of: Callable[[UInt8[Tensor, "b H W 3"]], Float[Tensor, "b d"]]
    instrument: dict[str, str]
    """Network, weights and preprocessing, for the record."""

    @torch.no_grad()
    def features(self, shots: Sequence[Shot]) -> Float[Tensor, "n d"]:
        """Features of stored images, in double precision."""
        return torch.cat([self.of(pixels).double() for pixels in batches(shots, BATCH)])


class Compared(NamedTuple):
    """Two sets of images as a network sees them."""

    name: str
    """The metric's, which says so where the network is a stand-in."""
    kept: list[Shot]
    ours: Float[Tensor, "n d"]
    theirs: Float[Tensor, "m d"]
    instrument: dict[str, Any]


def compared(metric: str, network: str, weights: str, minimum: int, kept: list[Shot], others: list[Shot]) -> Compared:
    """Features of images to keep and of a reference's.

    Raises:
        ExpungeError: if either set has fewer than ``minimum`` images, or the network cannot be had.
    """
    for what, images in (("images to keep", kept), ("images in the reference", others)):
        if len(images) < minimum:
            raise ExpungeError(f"{metric} of {len(images)} {what}: expected {minimum} or more (minimum)")
    net = extractor(network, weights)
    name = metric if network == "inception" else f"{metric}_{network}"
    told = {**net.instrument, "reference_images": len(others)}
    return Compared(name, kept, net.features(kept), net.features(others), told)


def extractor(network: str, weights: str) -> Extractor:
    """Open ``testbed``, or ``inception`` with the weights named.

    Raises:
        ExpungeError: for another network, or weights that cannot be had.
    """
    if network not in NETWORKS:
        raise unknown("feature network", network, NETWORKS)
    return _inception(weights) if network == "inception" else _testbed()


def _testbed() -> Extractor:
    net = testbed.network("features")
    told = {"network": f"{testbed.VERSION} features, 128", "preprocessing": "area resize to 64 x 64"}
    return Extractor(lambda images: net.features(as_input(images)), told)


def _inception(weights: str) -> Extractor:
    """Inception of the original FID (TensorFlow's, as torch-fidelity converted it), read as torchmetrics reads it."""
    fid = stored.package("torchmetrics.image.fid", "metrics", "the network inception")
    stored.package("torch_fidelity", "metrics", "the network inception")
    loaded = stored.load(weights, URL, "torch-fidelity's Inception")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "inception.pth"  # the class reads a file itself: one that holds tensors and nothing else
        torch.save(dict(loaded.tensors), path)
        try:
            net = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except RuntimeError as error:
            raise stored.misfit("torch-fidelity's Inception", error) from error
    told = {
        "network": "Inception (2015-12-05), 2048",
        "weights": loaded.origin,
        "preprocessing": "torchmetrics: bilinear with antialiasing to 299 x 299, no crop",
    }
    return Extractor(lambda images: net(images.permute(0, 3, 1, 2).contiguous()), told)
