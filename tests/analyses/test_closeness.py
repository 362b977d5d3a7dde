import pytest
import scipy.stats
import torch

from expunge import backbones
from expunge.analyses.closeness import Closeness, text_distances
from expunge.core.analysis import Study
from expunge.core.errors import ExpungeError
from expunge.erasers.uce import UCE
from expunge.judges.testbed import Testbed
from expunge.stages import erase

OBJECTS = ("church", "castle", "dog", "cat", "radio", "bus", "guitar")


@pytest.fixture(scope="module")
def testbed():
    return backbones.load("testbed")


@torch.no_grad()
def test_distances_are_those_of_the_text_encoder_s_own_vectors(testbed):
    words, targets = ["castle", "delivery truck"], ["church", "bus"]
    model, tokenizer = (testbed.components()[part] for part in ("text_encoder", "tokenizer"))

    def vector(word, pool):
        ids = tokenizer(word, return_tensors="pt").input_ids  # unpadded: start, words, end
        hidden = model(input_ids=ids).last_hidden_state[0]
        return hidden[-1] if pool == "end" else hidden[1:-1].mean(0)

    for pool in ("end", "mean"):
        expected = [
            min(float(1 - torch.cosine_similarity(vector(w, pool), vector(t, pool), dim=0)) for t in targets)
            for w in words
        ]
        assert text_distances(testbed, words, targets, pool).tolist() == pytest.approx(expected, abs=1e-4)


def test_changes_are_judged_image_by_image_and_ranked_against_distance(testbed):
    edit = erase.run(testbed, "uce", UCE(anchor="dog", tokens="tail", lamb=0.01), erase.concepts("church"), [])
    how = {"guidance": 4.0, "steps": 4, "batch": 16, "seed": 3, "prompt": lambda w: f"image of a {w}"}
    what = Study(targets=["church"], retain=[], edits=[edit], **how)
    found = Closeness(objects=OBJECTS, count=3).findings(testbed, what)
    judge, hits = Testbed(), {}
    for state, edits in (("before", []), ("after", [edit])):
        with testbed.attached(edits):
            for word in OBJECTS[1:]:
                pixels = testbed.generate(what.queries([word], 3)).pixels
                hits[state, word] = [judge.labels[i] == word for i in judge.scores(pixels).argmax(1)]
    drawn = [w for w in OBJECTS[1:] if any(hits["before", w])]
    changes = [sum(hits["after", w]) - sum(hits["before", w]) for w in drawn]
    by = {m.metric: m for m in found.measurements}
    assert by["change"].interval.value == pytest.approx(100 * sum(changes) / (3 * len(drawn)))
    points = found.figures["closeness"].series[0]
    assert list(points.labels) == drawn, "the target is left out, and what was never drawn right"
    assert list(points.y) == pytest.approx([100 * c / 3 for c in changes], abs=0.01)
    distances = text_distances(testbed, drawn, ["church"], "end").numpy()
    assert len(set(changes)) > 1
    rho = scipy.stats.spearmanr(distances, changes).statistic
    assert by["rho"].interval.value == pytest.approx(100 * rho, abs=1e-3)
    assert (by["rho"].n, list(by["rho"].per_image)) == (len(drawn), [])


def test_an_edit_that_changes_nothing_has_no_correlation(testbed):
    edit = testbed.edit_of(testbed.tensors(testbed.group("xattn")))
    how = {"guidance": 4.0, "steps": 4, "batch": 16, "seed": 3, "prompt": lambda w: f"image of a {w}"}
    what = Study(targets=["church"], retain=[], edits=[edit], **how)
    found = Closeness(objects=("dog", "radio", "guitar", "bus"), count=1).findings(testbed, what)
    assert [m.metric for m in found.measurements] == ["change"]
    assert found.measurements[0].interval.value == 0
    assert "all objects alike" in found.figures["closeness"].note
    with pytest.raises(ExpungeError, match="expected three or more"):
        Closeness(objects=("dog", "church", "radio"), count=1).findings(testbed, what)
