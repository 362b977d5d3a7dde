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
