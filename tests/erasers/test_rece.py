import dataclasses
import itertools

import pytest
import torch

import expunge
from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.erasers.rece import RECE
from expunge.erasers.uce import UCE
from tiny import tiny_sd3_pipeline

TASK = Task(targets=[Concept(name="church"), Concept(name="dog", anchor="fish")], retain=["car"])


def vectors(backbone, text):
    with torch.no_grad():
        return backbone.encode([text]).embeds[0].double()


def still_reaching(edited, original, c, regular):
    """The vector by least squares on stacked matrices: sqrt(lambda) I below the edited ones asks for a short answer."""
    left = torch.cat([*edited, regular**0.5 * torch.eye(len(c), dtype=torch.float64)])
    right = torch.cat([*(w @ c for w in original), torch.zeros(len(c), dtype=torch.float64)])
    return torch.linalg.lstsq(left, right[:, None]).solution[:, 0]


def test_the_first_round_is_uce_s_first_script_with_its_own_weights(backbone):
    uce = UCE(tokens="tail", anchor=" ", lamb=0.1, preserve_scale=0.1, preserve_empty=True)
    first = next(iter(RECE().steps(backbone, TASK))).edit()
    (other,) = uce.steps(backbone, TASK)
    assert first.id == other.edit().id


@pytest.mark.parametrize("method", [RECE(), UCE(tokens="tail")])
def test_the_tail_of_a_text_of_two_encoders_is_refused(method):
    """SD3 has CLIP's vectors and then T5's: from the last word on, T5's would stand beside CLIP's padding."""
    backbone = backbones.of(tiny_sd3_pipeline())
    with pytest.raises(ExpungeError, match=r"tokens tail on .*two encoders' vectors one after the other: expected all"):
        list(method.steps(backbone, TASK))


@pytest.mark.parametrize("method", ["uce", "rece"])
def test_presets_erase_the_vectors_of_both_encoders_of_sd3(method):
    backbone = backbones.of(tiny_sd3_pipeline())
    edit = expunge.erase(backbone, "church", method)
    before, goal = (backbone.encode([text]).embeds[0] for text in ("church", " "))
    (name,) = edit.replaced
    old, new = (before @ w.T for w in (backbone.tensors([name])[name], edit.replaced[name]))
    wanted = goal @ backbone.tensors([name])[name].T
    clip = backbone.tokenize(["church"]).shape[1]
    for part in (slice(0, clip), slice(clip, None)):
        assert (new[part] - wanted[part]).norm() < 0.95 * (old[part] - wanted[part]).norm()


def test_a_later_round_erases_what_still_reaches_the_concept(backbone):
    """Equations 8 and 3 by hand: all vectors of church and dog, derived, beside those of the empty prompt and of car."""
    eraser = RECE(epochs=2, regular_scale=0.02, lamb=0.3, erase_scale=2.0, preserve_scale=0.5, anchor="cat")
    edits = [step.edit() for step in eraser.steps(backbone, TASK)]
    assert len(edits) == 3
    original = {n: w.double() for n, w in backbone.stored(backbone.text_inputs()).items()}
    for before, after in itertools.pairwise(edits):
        now = {n: before.replaced[n].double() for n in original}
        pairs = []
        for name, anchor in (("church", "cat"), ("dog", "fish")):
            goals = vectors(backbone, anchor)
            derived = [
                still_reaching(list(now.values()), list(original.values()), c, 0.02) for c in vectors(backbone, name)
            ]
            pairs += [(c, g, 2.0) for c, g in zip(derived, goals, strict=True)]
        pairs += [(c, c, 0.5) for word in ("", "car") for c in vectors(backbone, word)]
        for name, w in now.items():
            left, right = 0.3 * w, 0.3 * torch.eye(32, dtype=torch.float64)
            for c, g, s in pairs:
                left = left + s * torch.outer(w @ g, c)
                right = right + s * torch.outer(c, c)
            found = after.replaced[name].double()
            assert torch.allclose(found, left @ torch.inverse(right), atol=1e-4), name
    assert edits[0].id != edits[1].id != edits[2].id


def test_an_interrupted_erasure_goes_on_to_the_same_edit_from_every_round(backbone):
    eraser = RECE(epochs=2)
    steps = [(s.index, s.edit().id, s.state()) for s in eraser.steps(backbone, TASK)]
    for index, _, state in steps[:-1]:
        *_, last = eraser.steps(backbone, TASK, state)
        assert last.index == 2
        assert last.edit().id == steps[-1][1], f"after round {index}"


def test_a_round_s_edit_and_state_do_not_change_when_the_next_is_made(backbone):
    steps = iter(RECE(epochs=1).steps(backbone, TASK))
    first = next(steps)
    before = first.edit().id
    next(steps)
    assert first.edit().id == before
    assert int(first.state()["next"]) == 1


def left_over(model, targets, edit, regular=1e-3):
    """How near the best vector comes to the concept's own answers: 0 reaches them, 1 is no better than nothing."""
    original = [w.double() for w in model.stored(list(edit.replaced)).values()]
    now = [w.double() for w in edit.replaced.values()]
    misses, whole = 0.0, 0.0
    for target in targets:
        ids = model.tokenize([target])
        c = vectors(model, target)[int(model.end(ids)[0]) - 1]
        found = still_reaching(now, original, c, regular)
        misses += sum(float((a @ found - b @ c).square().sum()) for a, b in zip(now, original, strict=True))
        whole += sum(float((b @ c).square().sum()) for b in original)
    return misses / whole


def test_each_round_leaves_less_that_reaches_the_concept_on_the_testbed():
    model = backbones.load("testbed")
    task = Task(targets=[Concept(name="church")])
    eraser = RECE(epochs=3, anchor="a picture", regular_scale=1e-3)
    left = [left_over(model, ["church"], step.edit()) for step in eraser.steps(model, task)]
    assert left == sorted(left)
    assert left[-1] > 1.2 * left[0]
    assert model.cost.equivalents == 0


def test_reads_no_unet_evaluation_and_its_strength_is_that_of_erasing(backbone):
    list(RECE(epochs=1).steps(backbone, TASK))
    assert backbone.cost.equivalents == RECE().cost(2, 1).equivalents == 0
    assert not backbone._parts.built("unet"), "a closed form reads its tensors from the file"
    assert RECE().stronger(2.0) == dataclasses.replace(RECE(), erase_scale=2.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "rece's epochs is 0: expected 1 or more"),
        ({"regular_scale": 0.0}, "rece's regular_scale is 0.0: expected a positive number"),
        ({"lamb": -1.0}, "rece's lamb is -1.0"),
        ({"erase_scale": 0.0}, "rece's erase_scale is 0.0"),
        ({"preserve_scale": -0.1}, "rece's preserve_scale is -0.1: expected zero or more"),
        ({"templates": ("no place",)}, "no place"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ExpungeError, match=words):
        RECE(**settings)
