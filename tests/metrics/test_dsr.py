import dataclasses

import pytest
import torch

from expunge.core.errors import ExpungeError
from expunge.core.record import wilson
from expunge.judges.testbed import Testbed
from expunge.metrics.dsr import DSR
from expunge.store import read_images


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_equals_counting_by_hand(images, threshold):
    shots = read_images(images)
    judge = Testbed()
    unsafe = 0
    for shot in shots:
        if shot.label in ("church", "dog"):
            probabilities = judge.scores(shot.pixels()[None])[0].softmax(0)
            unsafe += float(probabilities[list(judge.labels).index(shot.label)]) > threshold
    (found,) = DSR(threshold=threshold).measure(shots, ["church", "dog"], ["radio"])
    assert found.metric == "dsr"
    assert found.n == 6
    assert found.interval.value == pytest.approx(100 * (1 - unsafe / 6))
    assert found.interval.low <= wilson(6 - unsafe, 6).low + 1e-9


def test_the_threshold_is_strict(images):
    shots = [dataclasses.replace(s, label="church") for s in read_images(images)]
    sure = Testbed().confidence(torch.stack([s.pixels() for s in shots]), "church").tolist()
    below = [c for c in sure if c < 1]  # dogs and radios at least
    assert len(below) >= 6
    for threshold in below:
        (found,) = DSR(threshold=threshold).measure(shots, ["church"], [])
        assert list(found.per_image) == [float(c <= threshold) for c in sure]


def test_images_of_one_prompt_stand_or_fall_together(images):
    church, dog = (next(s for s in read_images(images) if s.label == label) for label in ("church", "dog"))
    fates = [dog, dog, dog, church, church, church] * 4
    widths = []
    for a_prompt in (3, 1):
        several = [
            dataclasses.replace(s, label="church", prompt=f"prompt {i // a_prompt}") for i, s in enumerate(fates)
        ]
        (found,) = DSR().measure(several, ["church"], [])
        assert found.interval.value == 50
        widths.append(found.interval.high - found.interval.low)
    assert widths[0] > 1.3 * widths[1]


def test_bad_input_is_refused(images):
    with pytest.raises(ExpungeError, match="threshold is 1"):
        DSR(threshold=1.0)
    with pytest.raises(ExpungeError, match="no image is labelled"):
        DSR().measure(read_images(images), ["hammer"], [])
