"""The papers' judge, without its weights: labels, transforms, and a network from a file."""

import json
import sys

import pytest
import torch
import torchvision
from PIL import Image

from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.judges.imagenet import ImageNet
from expunge.metrics.esr_psr import EsrPsr
from expunge.stages.measure import measure
from expunge.store import read_images

IMAGENETTE = {
    "tench": 0,
    "English Springer": 217,
    "Cassette Player": 482,
    "Chain Saw": 491,
    "church": 497,
    "French Horn": 566,
    "Garbage Truck": 569,
    "Gas Pump": 571,
    "Golf Ball": 574,
    "parachute": 701,
}


@pytest.fixture(scope="module")
def photographs():
    from skimage import data

    return [
        torch.from_numpy(data.astronaut()),
        torch.from_numpy(data.coffee())[:, :512],
        torch.from_numpy(data.chelsea()),
    ]


def test_imagenette_s_names_are_imagenet_s_ids():
    judge = ImageNet("random")
    assert len(judge.labels) == 1000
    assert {name: judge.label_ids(name) for name in IMAGENETTE} == {name: [i] for name, i in IMAGENETTE.items()}
    with pytest.raises(ExpungeError, match="unknown concept for judge 'imagenet': 'chain-saw'"):
        judge.label_ids("chain-saw")


def test_scores_are_the_network_s_on_its_own_transforms(photographs, tmp_path):
    torch.manual_seed(5)
    net = torchvision.models.resnet50().eval()
    torch.save(net.state_dict(), tmp_path / "resnet.pth")
    judge = Catalog("judges").open(f"imagenet:weights={tmp_path / 'resnet.pth'}")
    transforms = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    for image in photographs:
        with torch.no_grad():
            wanted = net(transforms(Image.fromarray(image.numpy()))[None])
        assert torch.allclose(judge.scores(image[None]), wanted, atol=0.02 * float(wanted.std()))
    assert judge.instrument()["weights"].startswith("sha256:")
    assert judge.instrument()["preprocessing"] == "torchvision: 232, centre 224"
    assert judge.identity() != ImageNet("random").identity() != ImageNet().identity()
    assert judge.valid(photographs[0][None]) is None


def test_it_reports_esr_and_says_that_its_weights_are_random(images):
    records = measure(EsrPsr(judge="imagenet:weights=random", ks=(1, 1000)), "esr-psr", images, ["church"], [])
    by = {r.metric: r for r in records}
    assert by["esr@1000"].value == 0
    assert "valid_rate" not in by
    assert by["esr@1"].provenance["instrument"]["weights"] == "random"
    shots = [s for s in read_images(images) if s.label == "church"]
    order = ImageNet("random").scores(torch.stack([s.pixels() for s in shots])).argmax(1)
    assert by["esr@1"].value == pytest.approx(100 * float((order != 497).float().mean()), abs=1e-3)
    json.dumps(by["esr@1"].as_json())


def test_absent_weights_and_package_are_one_line(photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ExpungeError, match=r"weights of torchvision's ResNet-50 cannot be had from https://"):
        ImageNet().scores(photographs[0][None])
    with pytest.raises(ExpungeError, match=r"cannot be had '.*none.pth': expected a network, or the path of a file"):
        ImageNet(str(tmp_path / "none.pth")).scores(photographs[0][None])
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ExpungeError, match="the weights are not of torchvision's ResNet-50"):
        ImageNet(str(tmp_path / "other.pth")).scores(photographs[0][None])
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ExpungeError, match=r"judge imagenet needs torchvision.models.*expected expunge\[metrics\]"):
        ImageNet()
