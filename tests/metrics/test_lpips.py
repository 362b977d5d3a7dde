"""LPIPS against its formula in plain torchvision layers, with the package's learned heads; and prior preservation."""

import dataclasses
from pathlib import Path

import lpips
import pytest
import torch
import torchvision

from expunge.core.errors import ExpungeError
from expunge.metrics.lpips import LPIPS
from expunge.metrics.prior_distance import PriorDistance
from expunge.metrics.prior_preservation import PriorPreservation
from expunge.pretrained.perceptual import perceptual
from expunge.store import read_images

CUTS = (2, 5, 8, 10, 12)
"""Where AlexNet's features are read: after each rectifier."""


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    torch.manual_seed(3)
    net = torchvision.models.AlexNet().eval()
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(net.state_dict(), path)
    return net, path


@pytest.fixture
def moved(images):
    """The images, and the same prompts' and seeds' before they were moved by three pixels."""
    shots = read_images(images)
    return shots, [dataclasses.replace(s, pixels=lambda s=s: s.pixels().roll(3, 1)) for s in shots]


@torch.no_grad()
def by_hand(net, one, other, size=None):
    """Zhang et al., Eq. 1."""
    heads = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = 0.0
    layers = []
    for image in (one, other):
        x = (image.float() / 127.5 - 1).permute(2, 0, 1)[None]
        if size:
            x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
        x = (x - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)
        layers.append([net.features[:cut](x)[0] for cut in CUTS])
    for number, (u, v) in enumerate(zip(*layers, strict=True)):
        u, v = (m / m.square().sum(0, keepdim=True).sqrt().clamp_min(1e-10) for m in (u, v))
        weight = heads[f"lin{number}.model.1.weight"].view(-1, 1, 1)
        total += float((weight * (u - v).square()).sum(0).mean())
    return total


def test_equals_the_formula_with_a_trunk_from_a_file(moved, alexnet):
    net, path = alexnet
    big = [[dataclasses.replace(s, pixels=lambda s=s: s.pixels().repeat(2, 2, 1)) for s in some] for some in moved]
    for resolution, size, (some, others) in (("full", None, moved), ("64", 64, big)):
        metric = LPIPS(weights=str(path), resolution=resolution)
        found = {m.metric: m for m in metric.measure(some, ["church"], ["dog", "radio"], others)}
        wanted = [by_hand(net, a.pixels(), b.pixels(), size) for a, b in zip(some, others, strict=True)]
        assert found["lpips_erased"].per_image == pytest.approx(wanted[:3], rel=1e-3)
        assert found["lpips_kept"].interval.value == pytest.approx(100 * sum(wanted[3:]) / 6, rel=1e-3)
    told = found["lpips_kept"].instrument
    assert told["weights"] == f"sha256:{metric.identity().removeprefix('sha256:')}"
    assert told["preprocessing"] == "[-1, 1], bilinear to 64 x 64"


def test_prior_preservation_is_one_minus_the_distance(moved, alexnet):
    shots, before = moved
    path = str(alexnet[1])
    for ours, theirs, name, distance in (
        (PriorPreservation(), PriorDistance(), "prior_preservation_testbed", "prior_distance"),
        (PriorPreservation(network="alex", weights=path), LPIPS(weights=path), "prior_preservation", "lpips_kept"),
    ):
        (kept,) = ours.measure(shots, ["church"], ["dog"], before)
        far = {m.metric: m for m in theirs.measure(shots, ["church"], ["dog"], before)}[distance]
        assert kept.metric == name
        assert kept.interval.value == pytest.approx(100 - far.interval.value)
        assert kept.interval.low < kept.interval.value < kept.interval.high
        assert kept.n == 3
        again, spread = dataclasses.replace(ours, spread=True).measure(shots, ["church"], ["dog"], before)
        assert (again.metric, spread.metric) == (name, f"{name}_sd")
        wanted = torch.tensor(kept.per_image, dtype=torch.float64).std()
        assert spread.interval.value == pytest.approx(100 * float(wanted))


def test_images_that_ask_for_nothing_in_particular_are_kept(moved):
    shots, before = ([dataclasses.replace(s, label=None) for s in some] for some in moved)
    (kept,) = PriorPreservation().measure(shots, ["church"], [], before)
    assert kept.n == 9
    with pytest.raises(ExpungeError, match="of targets alone"):
        PriorPreservation().measure(moved[0], ["church"], [], moved[1])


@pytest.mark.parametrize("metric", [LPIPS(weights="random"), PriorDistance(), PriorPreservation()])
def test_two_images_of_a_pair_are_of_one_size_and_pairs_may_differ(moved, metric):
    def wide(shots, which, by=2):
        return [
            dataclasses.replace(s, pixels=lambda s=s: torch.nn.functional.pad(s.pixels(), (0, 0, 0, by)))
            if i in which
            else s
            for i, s in enumerate(shots)
        ]

    shots, before = moved
    retain = ["dog", "radio"]
    found = metric.measure(wide(shots, {4, 7}), ["church"], retain, wide(before, {4, 7}))
    alone = [metric.measure(wide([s], {0}), ["church"], retain, wide([b], {0})) for s, b in ((shots[4], before[4]),)]
    assert found[-1].per_image[1] == pytest.approx(alone[0][-1].per_image[0], rel=1e-4)
    for by, size in ((2, "64 x 66"), (40, "64 x 104")):
        words = rf"'{shots[4].path.name}' is {size} and the reference's '.*' 64 x 64: expected two images of one size"
        with pytest.raises(ExpungeError, match=words):
            metric.measure(wide(shots, {4}, by), ["church"], retain, before)


def test_random_weights_are_the_same_every_time_and_said_so(moved):
    state = torch.get_rng_state()
    first, second = (LPIPS(weights="random").measure(*(moved[0], ["church"], [], moved[1]))[0] for _ in range(2))
    assert torch.equal(state, torch.get_rng_state()), "nobody else's random numbers move"
    assert first.per_image == second.per_image
    assert first.instrument["weights"] == "random"
    assert LPIPS(weights="random").identity() == ""


def test_bad_weights_are_refused(tmp_path):
    with pytest.raises(ExpungeError, match=r"weights of torchvision's AlexNet cannot be had from https://"):
        perceptual("alex", "official")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ExpungeError, match="the weights are not of torchvision's AlexNet"):
        perceptual("alex", str(tmp_path / "other.pth"))
    with pytest.raises(ExpungeError, match=r"no weights '.*none': expected official, random, or the path"):
        LPIPS(weights=str(tmp_path / "none")).identity()
    with pytest.raises(ExpungeError, match="unknown perceptual network 'alx': did you mean 'alex'"):
        perceptual("alx")
