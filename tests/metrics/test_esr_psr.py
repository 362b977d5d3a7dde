import pytest
import torch

from expunge.core.errors import ExpungeError
from expunge.judges.testbed import Testbed
from expunge.metrics.esr_psr import EsrPsr
from expunge.stages.measure import measure
from expunge.store import read_images


def found(images, targets, retain, **settings):
    return {m.metric: m for m in EsrPsr(**settings).measure(read_images(images), targets, retain)}


def test_equals_counting_by_hand(images):
    shots = read_images(images)
    judge = Testbed()
    order = judge.scores(torch.stack([s.pixels() for s in shots])).argsort(1, descending=True)
    names = [[judge.labels[i] for i in row] for row in order.tolist()]
    measured = found(images, ["church"], ["dog", "radio"], ks=(1, 5, 116))
    for k in (1, 5, 116):
        gone = [s.label not in row[:k] for s, row in zip(shots, names, strict=True) if s.label == "church"]
        kept = [s.label in row[:k] for s, row in zip(shots, names, strict=True) if s.label != "church"]
        assert measured[f"esr@{k}"].interval.value == pytest.approx(100 * sum(gone) / 3)
        assert measured[f"psr@{k}"].interval.value == pytest.approx(100 * sum(kept) / 6)
        assert measured[f"psr@{k}"].n == 6
    assert measured["esr@116"].interval.value == 0
    assert measured["psr@116"].interval.value == 100


def test_what_targets_became_adds_up_to_what_was_seen(images):
    measured = found(images, ["church"], [])
    became = [m.interval.value for name, m in measured.items() if name.startswith("became@")]
    assert sum(became) == pytest.approx(100)


def test_unlabelled_and_unknown_are_refused(images):
    shots = read_images(images)
    with pytest.raises(ExpungeError, match="did you mean 'church'"):
        EsrPsr().measure(shots, ["chuch"], [])
    with pytest.raises(ExpungeError, match="no image is labelled"):
        EsrPsr().measure(shots, ["hammer"], [])
    with pytest.raises(ExpungeError, match="ranks"):
        EsrPsr(ks=(0,)).measure(shots, ["church"], [])
    with pytest.raises(ExpungeError, match="no image labelled 'hammer'"):
        measure(EsrPsr(), "esr-psr", images, ["hammer"], [])


def test_records_say_where_they_come_from(images):
    records = measure(EsrPsr(), "esr-psr", images, ["church"])
    by = {r.metric: r for r in records}
    assert by["psr@1"].provenance["retain_measured"] == ["dog", "radio"], "every other label of the folder"
    assert by["esr@1"].subject == "original"
    assert by["esr@1"].model == "testbed"
    assert by["esr@1"].n_seeds == 3
    assert by["esr@1"].as_json()["format"] == 1


class Detector(Testbed):
    """Sees what it is surer of than half, several things or none."""

    ranks = False

    def confidence(self, images, concept):
        return images.float().mean((1, 2, 3)) / 255


def test_a_detector_is_refused_since_its_scores_are_no_ranks(images, monkeypatch):
    monkeypatch.setattr("expunge.core.catalog.Catalog.open", lambda catalog, name: Detector())
    for ask in (lambda: EsrPsr().check([]), lambda: found(images, ["church"], ["dog"])):
        with pytest.raises(ExpungeError, match="esr-psr by testbed, a detector, whose scores rank no label"):
            ask()


def test_what_a_judge_shows_is_its_first_label_and_of_a_detector_what_it_is_sure_of():
    pixels = torch.stack([torch.full((64, 64, 3), level).byte() for level in (0, 100, 200)])
    assert Detector().shows(pixels, "church").tolist() == [False, False, True]
    judge = Testbed()
    best = [judge.labels[i] for i in judge.scores(pixels).argmax(1).tolist()]
    assert judge.shows(pixels, best[0]).tolist() == [label == best[0] for label in best]
