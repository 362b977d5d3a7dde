"""FID and KID on stored images: whose features, of which images, against which reference."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

from expunge import testbed
from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.metrics.fid import FID
from expunge.metrics.kid import KID
from expunge.pretrained.features import extractor
from expunge.store import read_any_images, read_images


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Seven crops of photographs, of two sizes, with no metadata."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photographs")
    for i in range(7):
        whole = data.astronaut() if i % 2 else data.coffee()
        Image.fromarray(whole[40 * i : 40 * i + 120, 30 : 130 + 20 * (i > 3)]).save(folder / f"{i}.png")
    return folder


def features(shots):
    net = testbed.network("features")
    with torch.no_grad():
        rows = [
            torch.nn.functional.interpolate(
                s.pixels().permute(2, 0, 1)[None].float() / 127.5 - 1, (64, 64), mode="area"
            )
            for s in shots
        ]
        return np.stack([[*net.maps(x)][-1].mean((2, 3))[0].numpy() for x in rows]).astype(np.float64)


def test_fid_of_kept_images_against_photographs(images, photographs):
    shots, reference = read_images(images), read_any_images(photographs)
    (found,) = FID(minimum=2).measure(shots, ["church"], ["dog", "radio"], reference)
    x, y = features([s for s in shots if s.label != "church"]), features(reference)
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # the root through eigenvalues: `sqrtm` is unsure of a product of such low rank
    root = np.sqrt(np.maximum(linalg.eigvals(one @ two).real, 0)).sum()
    assert found.metric == "fid_testbed"
    assert found.interval.value == pytest.approx(
        ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + two) - 2 * root, rel=1e-4
    )
    assert (found.n, found.n_seeds, list(found.per_image)) == (6, 3, [])
    assert found.instrument["reference_images"] == 7


def test_kid_of_drawings_against_photographs(images, photographs):
    shots, reference = read_images(images), read_any_images(photographs)
    (found,) = KID(minimum=3).measure(shots, [], ["church", "dog", "radio"], reference)
    assert found.metric == "kid_testbed"
    assert found.interval.value > 0
    assert found.interval.low <= found.interval.value <= found.interval.high


def test_small_sets_are_refused(images):
    shots = read_images(images)
    with pytest.raises(ExpungeError, match=r"fid of 6 images to keep: expected 2000 or more \(minimum\)"):
        FID().measure(shots, ["church"], ["dog", "radio"], shots)
    with pytest.raises(ExpungeError, match="kid of 3 images in the reference: expected 4 or more"):
        KID(minimum=4).measure(shots, [], ["church", "dog"], shots[:3])
    strangers = [dataclasses.replace(s, label="bus") for s in shots]
    with pytest.raises(ExpungeError, match="no image of the reference is labelled with one of"):
        KID(minimum=3).measure(shots, [], ["church", "dog"], strangers)
    with pytest.raises(ExpungeError, match="expected 2 or more"):
        FID(minimum=1)
    with pytest.raises(ExpungeError, match="unknown feature network 'incepton': did you mean 'inception'"):
        FID(minimum=2, network="incepton").measure(shots, [], ["dog"], shots)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """The tensors of a random Inception of torch-fidelity's class."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True, assign=False):
            return None

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    net = Empty("inception-v3-compat", ["2048"], str(path))
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)  # so that what an image shows reaches the end
    torch.save(net.state_dict(), path)
    return path


def test_inception_reads_images_as_torchmetrics_does(images, inception_file):
    from torchmetrics.image import FrechetInceptionDistance

    shots = read_images(images)[:4]
    net = extractor("inception", str(inception_file))
    theirs = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(inception_file)).inception
    wanted = theirs(torch.stack([s.pixels() for s in shots]).permute(0, 3, 1, 2))
    assert wanted.shape == (4, 2048)
    differ = wanted.double().std(0)  # a random network's features are nearly constant: what tells images apart counts
    assert bool((differ > 0).any())
    assert float((net.features(shots) - wanted.double()).norm()) < 0.05 * float(differ.norm())
    assert net.instrument["weights"].startswith("sha256:")


def test_bad_weights_are_one_line(tmp_path):
    with pytest.raises(
        ExpungeError, match=r"cannot be had from https://github\.com/toshas.*expected a network, or the path"
    ):
        extractor("inception", "official")
    with pytest.raises(ExpungeError, match=r"cannot be had '.*none\.pth'"):
        extractor("inception", str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(ExpungeError, match="holds no weights of torch-fidelity's Inception"):
        extractor("inception", str(tmp_path / "text.pth"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ExpungeError, match="the weights are not of torch-fidelity's Inception") as caught:
        extractor("inception", str(tmp_path / "other.pth"))
    assert "\n" not in str(caught.value)


def test_from_the_command_line(images, photographs, capsys):
    asked = ["measure", "fid", "--images", str(images), "--reference", str(photographs), "--minimum", "3", "--json"]
    assert main(asked) == 0
    (row,) = json.loads(capsys.readouterr().out)["records"]
    assert (row["metric"], row["n"], row["provenance"]["reference"]) == ("fid_testbed", 9, photographs.name)
    assert "same_seeds" not in row["provenance"]
    assert row["provenance"]["instrument"]["preprocessing"] == "area resize to 64 x 64"
    assert main(asked[:4]) == 2
    assert "fid with no reference" in capsys.readouterr().err
