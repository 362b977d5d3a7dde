import dataclasses
import warnings

import pytest
import torch

from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.erasers.negative_prompt import NegativePromptGuidance
from expunge.maths.training import Learned
from expunge.maths.trajectories import Sampling

TASK = Task(targets=[Concept(name="church"), Concept(name="dog")], seed=3)
BANK = Sampling(arm="bank", sampling_steps=5, trajectories=3, reuse=2)
"""Two concepts: four trajectories a pool, so that both have as many."""


def source(backbone, settings, points=40):
    with torch.no_grad():
        cond, null = backbone.encode(["church", "dog"]), backbone.encode([""])
    return settings.source(backbone, cond, null, TASK, "test", points)


def ddim(backbone, x, prompt, scale, steps, count):
    """The first ``count`` of ``steps`` guided DDIM steps, from the formula: 20 apart at 50 steps, offset 1, eta 0."""
    unet = backbone.components()["unet"]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)
    times = [i * (1000 // steps) + 1 for i in reversed(range(steps))]
    with torch.no_grad():
        c, n = backbone.encode([prompt]).embeds, backbone.encode([""]).embeds
        for t in times[:count]:
            e_c, e_n = (unet(x, t, encoder_hidden_states=e).sample for e in (c, n))
            e = (e_n + scale * (e_c - e_n)).double()
            before = abar[t - 1000 // steps] if t >= 1000 // steps else abar[0]
            x0 = (x.double() - (1 - abar[t]).sqrt() * e) / abar[t].sqrt()
            x = (before.sqrt() * x0 + (1 - before).sqrt() * e).float()
    return x, times


def test_online_points_end_partial_ddim_trajectories(backbone):
    settings = Sampling(sampling_steps=5)
    points = source(backbone, settings).draw(7, 6)
    stops = torch.tensor([ddim(backbone, 0, "", 3, 5, 0)[1].index(t) for t in points.t.tolist()])
    assert len(set(stops.tolist())) > 1
    for row in range(6):
        start = backbone.noise(TASK.number("test", 7, row))
        word = ["church", "dog"][points.concept[row]]
        expected, _ = ddim(backbone, start, word, 3.0, 5, int(stops[row]))
        assert torch.allclose(points.x[row : row + 1], expected, atol=1e-4), row
    again = source(backbone, settings).draw(7, 6)
    assert torch.equal(again.x, points.x), "the same update draws the same points"
    assert not torch.equal(source(backbone, settings).draw(8, 6).x, points.x)


def test_a_bank_keeps_every_point_and_the_frozen_predictions(backbone):
    points = source(backbone, BANK).draw(0, 20)
    assert sorted(points.t.tolist()) == sorted([1, 201, 401, 601, 801] * 4), "each point of four trajectories once"
    with torch.no_grad():
        cond = backbone.encode(["church", "dog"]).rows(points.concept)
        e_c = backbone.predict(points.x, points.t, cond)
        e_null = backbone.predict(points.x, points.t, backbone.encode([""]))
    assert torch.allclose(points.cond, e_c, atol=1e-5)
    assert torch.allclose(points.null, e_null, atol=1e-5)
    row = int(torch.nonzero(points.t == 401)[0])
    word = ["church", "dog"][points.concept[row]]
    ends = [ddim(backbone, backbone.noise(TASK.number("test", "trajectory", j)), word, 3.0, 5, 2)[0] for j in range(4)]
    assert any(torch.allclose(points.x[row : row + 1], end, atol=1e-4) for end in ends)


def test_a_bank_keeps_another_text_s_prediction_where_points_are_used_again(backbone):
    with torch.no_grad():
        cond, null, also = (backbone.encode(texts) for texts in (["church", "dog"], [""], ["a fish", "a key"]))
        points = BANK.source(backbone, cond, null, TASK, "test", 40, also).draw(0, 20)
        expected = backbone.predict(points.x, points.t, also.rows(points.concept))
    assert torch.allclose(points.also, expected, atol=1e-5)
    plain = source(backbone, BANK).draw(0, 20)
    assert plain.also is None
    assert torch.equal(plain.x, points.x)
    once = dataclasses.replace(BANK, reuse=1)
    assert once.source(backbone, cond, null, TASK, "test", 20, also).draw(0, 20).also is None
    assert BANK.cost(40, 0, 2, also=1).equivalents == 4 * 5 * 3
    assert once.cost(20, 0, 2, also=1).equivalents == 4 * 5 * 2 + 20


def test_a_bank_uses_a_point_as_often_as_it_is_told_and_no_more(backbone):
    bank = source(backbone, BANK)
    before = backbone.cost
    seen = torch.cat([bank.draw(update, 5).x for update in range(8)])
    assert (backbone.cost - before).equivalents == 4 * 5 * 2, "one pool"
    points, counts = seen.flatten(1).unique(dim=0, return_counts=True)
    assert len(points) == 20
    assert counts.tolist() == [2] * 20


def test_an_update_s_points_depend_on_its_number_alone(backbone):
    through = source(backbone, BANK, 54)
    several = [through.draw(update, 6) for update in range(9)]  # update 6 straddles two pools
    for update in (6, 8):
        fresh = source(backbone, BANK, 54).draw(update, 6)
        assert torch.equal(fresh.x, several[update].x)
        assert torch.equal(fresh.t, several[update].t)


def test_the_student_is_in_place_only_for_the_online_student(backbone):
    names = backbone.text_inputs()
    student = Learned({n: t + 1.0 for n, t in backbone.tensors(names).items()}, 1e-3)
    found = {}
    for arm in ("online-student", "online-frozen"):
        settings = Sampling(arm=arm, sampling_steps=5)
        with settings.sampled_from(backbone.weights(student.values())):
            found[arm] = source(backbone, settings).draw(0, 4).x
    plain = source(backbone, Sampling(sampling_steps=5)).draw(0, 4).x
    assert torch.equal(found["online-frozen"], plain)
    assert not torch.equal(found["online-student"], plain)


def test_bad_settings_are_refused():
    for words, change in (
        ("sampling_steps", {"sampling_steps": 0}),
        ("reuse", {"reuse": 0}),
        ("trajectories", {"trajectories": 0}),
    ):
        with pytest.raises(ExpungeError, match=words):
            dataclasses.replace(BANK, **change)
    with pytest.raises(ExpungeError, match="keeps both predictions"):
        dataclasses.replace(BANK, sampling_guidance=1.0)


@pytest.mark.parametrize(
    ("steps", "first"), [(2, None), (20, None), (30, None), (50, None), (300, 898), (400, 799), (600, 600)]
)
def test_steps_that_divide_the_timesteps_badly_are_told(backbone, steps, first):
    """As where images are made. Noise that is added asks for no trajectory."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        backbone.add_noise(backbone.noise(0), backbone.noise(1), torch.tensor([3]))
        assert len(backbone.timesteps(steps)) == len(backbone.timesteps(steps)) == steps
    lines = [str(w.message) for w in heard if issubclass(w.category, ExpungeWarning)]
    assert len(lines) == (first is not None), "once"
    assert first is None or f"of {steps} steps on tiny begin at timestep {first} of 1000" in lines[0]


@pytest.mark.parametrize("arm", ["online-student", "bank"])
def test_steps_without_a_timestep_for_the_first_are_refused(backbone, arm):
    points = source(backbone, Sampling(arm=arm, sampling_steps=1000, trajectories=1))
    with pytest.raises(ExpungeError, match="1000 denoising steps, of which tiny has no timestep for the first"):
        points.draw(0, 1)


def test_every_concept_has_as_many_trajectories_in_each_pool_and_the_last_no_more_than_it_takes(backbone):
    settings = Sampling(arm="bank", sampling_steps=5, trajectories=3)
    assert settings.pools(100, 2) == [4, 4, 4, 4, 4]
    assert settings.pools(101, 2)[-1] == 2
    assert settings.pools(5, 7) == [7]
    assert settings.pools(70, 7) == [7, 7]
    seen = source(backbone, settings, 20).draw(0, 20).concept
    assert seen.bincount().tolist() == [10, 10]
    few = source(backbone, settings, 6).draw(0, 6).concept
    assert few.bincount().min() > 0, "a run shorter than a pool still sees every concept"


def test_a_bank_refuses_a_steered_model(backbone):
    backbone.attach(NegativePromptGuidance(text="dog"))
    with pytest.raises(ExpungeError, match="expected weights edits only"):
        source(backbone, BANK)
