"""The distance against its formula, written out place by place, and its pairing."""

import dataclasses
import json

import pytest
import torch

from expunge import testbed
from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.metrics.prior_distance import PriorDistance
from expunge.pretrained.perceptual import distances
from expunge.stages import measure
from expunge.store import read_images


def by_hand(a, b):
    """1 - cosine at every place of every map, with loops."""
    net = testbed.network("features")
    layers = []
    for u, v in zip(
        *([m[0] for m in net.maps(x.permute(2, 0, 1)[None].float() / 127.5 - 1)] for x in (a, b)), strict=True
    ):
        places = []
        for h in range(u.shape[1]):
            for w in range(u.shape[2]):
                x, y = u[:, h, w], v[:, h, w]
                places.append(1 - float(x @ y) / max(float(x.norm() * y.norm()), 1e-8))
        layers.append(sum(places) / len(places))
    return sum(layers) / len(layers)


def test_equals_the_formula_on_pairs_of_one_prompt_in_the_order_of_seeds(images):
    shots = read_images(images)
    shifted = [dataclasses.replace(s, pixels=lambda s=s: s.pixels().roll(3, 1), seed=s.seed + 500) for s in shots]
    found = {m.metric: m for m in PriorDistance().measure(shots, ["church"], ["dog", "radio"], list(reversed(shifted)))}
    church = sorted((s for s in shots if s.label == "church"), key=lambda s: s.seed)
    wanted = [by_hand(s.pixels(), s.pixels().roll(3, 1)) for s in church]
    assert found["target_distance"].per_image == pytest.approx(wanted, abs=1e-4)
    assert found["target_distance"].interval.value == pytest.approx(100 * sum(wanted) / 3, abs=1e-2)
    assert found["prior_distance"].n == 6
    assert torch.is_grad_enabled(), "as it was"
    low, high = found["prior_distance"].interval.low, found["prior_distance"].interval.high
    assert low < found["prior_distance"].interval.value < high


def test_the_same_image_is_at_zero_and_opposite_features_at_one(images):
    shots = read_images(images)
    for m in PriorDistance().measure(shots, ["church"], ["dog"], shots):
        assert m.interval.value == pytest.approx(0, abs=1e-4)
    one = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    assert distances([one, one], [one.flip(1), one]).tolist() == pytest.approx([0.5])
    assert distances([0 * one], [0 * one]).tolist() == [0.0], "two that see nothing are the same"


def test_what_cannot_be_paired_is_refused(images, tmp_path, capsys):
    shots = read_images(images)
    with pytest.raises(ExpungeError, match="reference has 2 images of 'image of a church': expected 3"):
        PriorDistance().measure(shots, ["church"], [], shots[1:])
    half = [dataclasses.replace(s, seed=s.seed + (50 if s.label == "dog" else 0)) for s in shots]
    with pytest.raises(ExpungeError, match="some of the images' seeds and not others"):
        PriorDistance().measure(shots, ["church"], ["dog"], half)
    with pytest.raises(ExpungeError, match="no image has a label"):
        PriorDistance().measure(shots, ["bus"], [], shots)
    with pytest.raises(ExpungeError, match="unknown network of prior-distance 'alex'"):
        PriorDistance(network="alex")
    with pytest.raises(ExpungeError, match="prior-distance with no reference: expected the original's images"):
        measure.measure(PriorDistance(), "prior-distance", images)
    with pytest.raises(ExpungeError, match="esr-psr with a reference: expected no reference"):
        measure.measure(measure.build("esr-psr", {}), "esr-psr", images, reference=images)
    asked = ["measure", "prior-distance", "--images", str(images), "--target", "church", "--json"]
    assert main([*asked, "--reference", str(images)]) == 0
    rows = json.loads(capsys.readouterr().out)["records"]
    assert {r["metric"]: r["value"] for r in rows} == {"target_distance": 0.0, "prior_distance": 0.0}
    assert rows[0]["provenance"]["reference"] == images.name
    assert rows[0]["provenance"]["same_seeds"] is True
    assert main(asked) == 2
