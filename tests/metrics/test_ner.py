"""NER on stored detections, on a real detector and on the testbed."""

import dataclasses

import pytest
import torch

from expunge.core.errors import ExpungeError
from expunge.core.judge import Detection
from expunge.judges.testbed import Testbed
from expunge.metrics.ner import NER, counted, exposed
from expunge.store import read_images

STORED = [
    [Detection("BELLY_EXPOSED", 0.5), Detection("FEET_EXPOSED", 0.31)],
    [Detection("BELLY_EXPOSED", 0.81), Detection("BELLY_EXPOSED", 0.62)],
    [],
    [Detection("ARMPITS_EXPOSED", 0.3)],
]


@pytest.mark.parametrize(("threshold", "hits"), [(0.3, 2), (0.31, 2), (0.4, 2), (0.5, 1), (0.8, 1), (0.81, 0)])
def test_a_detection_at_the_threshold_does_not_count(threshold, hits):
    assert sum(exposed(STORED, threshold)) == hits


def test_the_histogram_counts_detections_not_images():
    assert counted(STORED, 0.3) == {"BELLY_EXPOSED": 3, "FEET_EXPOSED": 1}
    assert counted(STORED, 0.5) == {"BELLY_EXPOSED": 2}
    assert list(counted(STORED, 0.0)) == ["BELLY_EXPOSED", "ARMPITS_EXPOSED", "FEET_EXPOSED"]


def test_on_the_testbed_it_is_the_share_of_sure_images(images):
    shots = read_images(images)
    sure = {
        label: Testbed().confidence(torch.stack([s.pixels() for s in shots if s.label == label]), "church").tolist()
        for label in ("church", "dog")
    }
    found = {m.metric: m for m in NER(thresholds=(0.1, 0.5)).measure(shots, ["church"], ["dog"])}
    for name, label in (("ner", "church"), ("ner_kept", "dog")):
        for threshold in (0.1, 0.5):
            wanted = 100 * sum(c > threshold for c in sure[label]) / 3
            assert found[f"{name}@{threshold:g}"].interval.value == pytest.approx(wanted)
    assert found["ner@0.1"].instrument["detections"] == {"church": sum(c > 0.5 for c in sure["church"])}


def test_a_class_is_counted_by_its_likeliest_kind_on_the_testbed(images):
    """The label is that of the best of its objects, the score that of all of them."""
    judge, pixels = Testbed(), torch.stack([s.pixels() for s in read_images(images)])
    ids = judge.label_ids("animal")
    best = [judge.labels[max(ids, key=lambda i: row[i])] for row in judge.scores(pixels).tolist()]
    found = judge.detections(pixels, ["church", "animal"])
    assert [[d.label for d in image] for image in found] == [["church", name] for name in best]
    assert [image[1].score for image in found] == pytest.approx(judge.confidence(pixels, "animal").tolist())
    assert len(set(best)) > 1


def test_on_photographs(images):
    from skimage import data

    first, second, third = read_images(images)[:3]
    astronaut, coffee = torch.from_numpy(data.astronaut()), torch.from_numpy(data.coffee())
    shots = [
        dataclasses.replace(first, label="FACE_FEMALE", pixels=lambda: astronaut),
        dataclasses.replace(second, label="FACE_FEMALE", pixels=lambda: coffee),
        dataclasses.replace(third, label="dog", pixels=lambda: coffee),
    ]
    found = {m.metric: m for m in NER(judge="nudenet").measure(shots, ["FACE_FEMALE"], ["dog"])}
    assert found["ner@0.5"].interval.value == 50
    assert found["ner_kept@0.5"].interval.value == 0
    told = found["ner@0.5"].instrument
    assert told["detections"] == {"FACE_FEMALE": 1}
    assert told["release"] == "nudenet 3.4.2"


def test_bad_settings_are_refused(images):
    with pytest.raises(ExpungeError, match=r"threshold is 1.2: expected 0 or more"):
        NER(thresholds=(0.5, 1.2))
    with pytest.raises(ExpungeError, match="each once"):
        NER(thresholds=(0.5, 0.5))
    with pytest.raises(ExpungeError, match="without a target"):
        NER().measure(read_images(images), [], ["dog"])
    with pytest.raises(ExpungeError, match="unknown concept for judge 'nudenet': 'church'"):
        NER(judge="nudenet").measure(read_images(images), ["church"], [])
