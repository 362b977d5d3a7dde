import dataclasses

import numpy as np
import pytest
import torch

from expunge import backbones
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.erasers.debias import Debias
from expunge.stages import erase

STYLES = ("twemoji style", "ink style", "vintage style")
SHORT = Debias(attributes=STYLES, images=5, batch=3, steps_of_images=3, guidance=4.0, iterations=2, step_size=0.7)
TASK = Task(targets=[Concept(name="dog"), Concept(name="church")], retain=["castle"], seed=3)


@pytest.fixture(scope="module")
def testbed():
    return backbones.load("testbed")


def counted(model, target, index, edits=()):
    """Images of a round, made and counted without the method."""
    queries = [
        Query(prompt=target, seed=TASK.number("debias", target, index, i) % 2**32, guidance=4.0, steps=3)
        for i in range(5)
    ]
    with model.attached(edits):
        pixels = torch.cat([model.generate([q]).pixels for q in queries])
    judge = Catalog("judges").open("testbed:network=b,labels=styles")
    scores = judge.scores(pixels)[:, [judge.labels.index(style.removesuffix(" style")) for style in STYLES]]
    return np.array([(scores.argmax(1) == i).float().mean() for i in range(3)])


def last(model, text):
    ids = model.tokenize([text])
    with torch.no_grad():
        return model.encode(ids).embeds[0, int(model.end(ids)[0]) - 1].double().numpy()


def by_hand(model, alphas):
    """The minimum of the objective with goals moved along the attributes, matrix by matrix."""
    moved = {
        t: last(model, t) + sum(a * last(model, s) for a, s in zip(alphas[t], STYLES, strict=True)) for t in alphas
    }
    found = {}
    for name, w in model.stored(model.text_inputs()).items():
        old = w.double().numpy()
        left, right = 0.5 * old, 0.5 * np.eye(old.shape[1])
        for text, goal in (*moved.items(), ("castle", last(model, "castle"))):
            c = last(model, text)
            left, right = left + np.outer(old @ goal, c), right + np.outer(c, c)
        found[name] = left @ np.linalg.inv(right)
    return found


def test_each_round_moves_by_the_step_size_from_the_shares_of_the_round_before(testbed):
    alphas = {t.name: np.zeros(3) for t in TASK.targets}
    edits = []
    for step in SHORT.steps(testbed, TASK):
        for target in alphas:
            off = 1 / 3 - counted(testbed, target, step.index, edits[-1:])
            alphas[target] = alphas[target] + 0.7 * off
        edits.append(step.edit())
        for name, expected in by_hand(testbed, alphas).items():
            assert np.allclose(edits[-1].replaced[name].numpy(), expected, atol=1e-4), (step.index, name)
    assert len(edits) == 2
    assert any(abs(a).max() > 0.1 for a in alphas.values())
    assert not testbed.edits


def test_it_costs_what_is_foreseen_and_goes_on_to_the_same_edit(testbed):
    before = testbed.cost
    steps = [(s.edit().id, s.state(), s.warnings()) for s in SHORT.steps(testbed, TASK)]
    assert testbed.cost - before == SHORT.cost(2, 1)
    (again,) = SHORT.steps(testbed, TASK, steps[0][1])
    assert again.edit().id == steps[1][0]
    assert not steps[0][2], "only the last round says what is left"
    assert any("'dog' was up to" in line for line in again.warnings())


def test_what_is_balanced_rests_and_ends_it(testbed):
    """Every share is within 1.1 of any other: nothing moves, and one round is enough."""
    (step,) = dataclasses.replace(SHORT, tolerance=1.1).steps(testbed, TASK)
    base = testbed.stored(testbed.text_inputs())
    assert all(torch.allclose(step.edit().replaced[n], w, atol=1e-5) for n, w in base.items())
    assert not step.warnings()


def test_wanted_shares_are_asked_for(testbed):
    """All of the first: it is moved along, and away from the others."""
    eraser = dataclasses.replace(SHORT, shares=(1.0, 0.0, 0.0), iterations=1)
    (step,) = eraser.steps(testbed, TASK)
    shares = counted(testbed, "dog", 0)
    assert np.allclose(step.state()["alphas"][0], 0.7 * (np.array([1.0, 0, 0]) - shares))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "attributes .*: expected two or more, all different"),
        ({"attributes": ("ink style", "ink style")}, "expected two or more, all different"),
        ({"attributes": ("ink style", "inc style")}, "did you mean 'ink'"),
        ({"attributes": ("ink style", "tile style"), "judge": "nobody"}, "unknown judge"),
    ],
)
def test_what_cannot_be_counted_is_refused_before_an_image_is_made(testbed, settings, words):
    before = testbed.cost
    with pytest.raises(ExpungeError, match=words):
        erase.run(testbed, "debias", Debias(**settings), [Concept(name="dog")], [])
    assert testbed.cost == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"images": 0}, "debias's images is 0"),
        ({"tolerance": 0.0}, "debias's tolerance is 0.0"),
        ({"preserve_scale": -1.0}, "debias's preserve_scale is -1.0"),
        ({"prompt": "a dog"}, "'a dog'"),
        ({"attributes": STYLES, "shares": (0.5, 0.5)}, "for 3 attributes: expected one for each, sum 1"),
        ({"attributes": STYLES, "shares": (0.5, 0.5, 0.5)}, "expected one for each, sum 1"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ExpungeError, match=words):
        Debias(**settings)
