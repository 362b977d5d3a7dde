import dataclasses

import pytest
import torch

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.erasers.sdd import SDD
from expunge.maths.trajectories import Sampling
from expunge.stages import erase

FROZEN = Sampling(arm="online-frozen", sampling_steps=4)
SHORT = SDD(iterations=2, batch=3, lr=1e-3, ema_decay=0.75, sampling=Sampling(sampling_steps=4))
TASK = Task(targets=[Concept(name="church"), Concept(name="dog")], seed=1)


def attn2(backbone):
    unet = backbone.components()["unet"]
    return {f"unet.{n}": p for n, p in unet.named_parameters() if ".attn2." in n}


def raw(backbone, x, t, texts):
    """The denoiser, called without expunge, on a text for each row."""
    with torch.no_grad():
        embeds = torch.cat([backbone.encode([text]).embeds for text in texts])
    return backbone.components()["unet"](x, t, encoder_hidden_states=embeds).sample


def points_of(backbone, eraser, index, text="church, dog"):
    with torch.no_grad():
        cond, null = backbone.encode([text]), backbone.encode([""])
    source = eraser.sampling.source(backbone, cond, null, TASK, "sdd", eraser.iterations * eraser.batch)
    return source.draw(index, eraser.batch)


def test_the_first_update_is_adamw_on_the_loss_and_a_step_of_the_average(backbone):
    """The goal is the model's own answer to no words; names take turns in the loss, and are joined along trajectories."""
    points, trained = points_of(backbone, SHORT, 0), attn2(backbone)
    with torch.no_grad():
        goal = raw(backbone, points.x, points.t, [""] * 3)
    for p in trained.values():
        p.requires_grad_(True)
    loss = ((raw(backbone, points.x, points.t, ["church", "dog", "church"]) - goal) ** 2).mean()
    gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    for p in trained.values():
        p.requires_grad_(False)
    eraser = dataclasses.replace(SHORT, weight_decay=10.0)
    step = next(iter(eraser.steps(backbone, TASK)))
    assert step.losses == {"distil": pytest.approx(loss.item(), rel=1e-4)}
    edit = step.edit()
    assert set(edit.replaced) == set(trained)
    for name, g in gradients.items():
        clear = g.abs() > 1e-5  # Adam's first step is lr times the sign
        wanted = trained[name] * (1 - 1e-3 * 10.0) - 1e-3 * g.sign()
        average = 0.75 * trained[name] + 0.25 * wanted
        assert torch.allclose(edit.replaced[name][clear], average[clear], atol=2e-6), name


def test_the_teacher_makes_the_points_and_the_student_is_its_own_goal(backbone):
    """The second update's loss by hand: latents from the average, both predictions from the student, the third name in turn."""
    eraser = dataclasses.replace(SHORT, lr=3e-2)  # so far that the student's own points would give another loss
    first, second = [(s.edit(), s.state(), s.losses["distil"]) for s in eraser.steps(backbone, TASK)]
    student = {n.removeprefix("student/value/"): t for n, t in first[1].items() if n.startswith("student/value/")}
    with backbone.weights(dict(first[0].replaced)):
        points = points_of(backbone, SHORT, 1)
    with backbone.weights(student):
        other = points_of(backbone, SHORT, 1)
        loss, others = (
            float(
                (raw(backbone, p.x, p.t, ["dog", "church", "dog"]) - raw(backbone, p.x, p.t, [""] * 3)).square().mean()
            )
            for p in (points, other)
        )
    assert second[2] == pytest.approx(loss, rel=1e-4)
    assert others != pytest.approx(loss, rel=1e-3)
    for name, now in second[0].replaced.items():
        assert torch.allclose(
            now, 0.75 * first[0].replaced[name] + 0.25 * second[1][f"student/value/{name}"], atol=1e-6
        )


def test_the_gradient_is_cut_to_its_length(backbone):
    """Adam's running mean holds a tenth of the gradient, which as a whole is no longer than the setting."""
    eraser = dataclasses.replace(SHORT, clip=1e-4)
    free, cut = (next(iter(e.steps(backbone, TASK))).state() for e in (dataclasses.replace(SHORT, clip=1e9), eraser))
    names = [n for n in free if "/exp_avg/" in n]
    lengths = [torch.cat([state[n].flatten() for n in names]).norm() / 0.1 for state in (free, cut)]
    assert lengths[0] > 2e-4
    assert lengths[1] == pytest.approx(1e-4, rel=1e-2)


def test_the_printed_roles_exchange_the_texts(backbone):
    eraser = dataclasses.replace(SHORT, roles="paper", separator=" and ", sampling=FROZEN)
    with torch.no_grad():
        each, null = backbone.encode(["church", "dog"]), backbone.encode([""])
        points = FROZEN.source(backbone, each, null, TASK, "sdd", 6).draw(0, 3)
        answer, goal = (raw(backbone, points.x, points.t, [t] * 3) for t in ("church and dog", ""))
    step = next(iter(eraser.steps(backbone, TASK)))
    assert step.losses["distil"] == pytest.approx(float(((answer - goal) ** 2).mean()), rel=1e-4)


def test_a_point_of_no_steps_is_pure_noise_and_says_so(backbone):
    """The released code samples a whole image where it stops before the first step, and labels it as noise."""
    eraser = dataclasses.replace(SHORT, batch=1, sampling=Sampling(sampling_steps=1))
    points = points_of(backbone, eraser, 0)
    assert torch.equal(points.x, backbone.noise(TASK.number("sdd", 0, 0)))
    assert points.t.tolist() == backbone.timesteps(1)
    with torch.no_grad():
        answer, goal = (raw(backbone, points.x, points.t, [t]) for t in ("church", ""))
    step = next(iter(eraser.steps(backbone, TASK)))
    assert step.losses["distil"] == pytest.approx(float(((answer - goal) ** 2).mean()), rel=1e-4)


@pytest.mark.parametrize("roles", ["code", "paper"])
def test_what_is_foreseen_is_what_it_takes(backbone, roles):
    assert SDD().cost(3, 2).equivalents == 1500 * (49 + 1 + 3)
    assert SDD(sampling=Sampling(arm="bank")).cost(1, 0).equivalents == 1500 * (2 + 1 + 3)
    bank = Sampling(arm="bank", sampling_steps=5, trajectories=2)
    eraser = dataclasses.replace(SHORT, roles=roles, iterations=10, batch=1, sampling=bank)
    before = backbone.cost
    list(eraser.steps(backbone, TASK))
    assert backbone.cost - before == eraser.cost(2, 0)


def test_it_goes_on_bit_for_bit(backbone):
    first, last = [(s.state(), s.edit()) for s in SHORT.steps(backbone, TASK)]
    (again,) = SHORT.steps(backbone, TASK, first[0])
    assert all(torch.equal(t, last[1].replaced[n]) for n, t in again.edit().replaced.items())
    lacking = {n: t for n, t in first[0].items() if not n.startswith("teacher/")}
    with pytest.raises(ExpungeError, match="the state to resume from has no 'teacher/value/"):
        list(SHORT.steps(backbone, TASK, lacking))


def test_on_the_testbed_the_concept_comes_to_read_like_no_words():
    backbone = backbones.load("testbed")
    bank = Sampling(arm="bank", sampling_steps=8, trajectories=4)
    eraser = SDD(iterations=8, batch=4, lr=1e-3, ema_decay=0.5, sampling=bank)
    task = Task(targets=[Concept(name="church")])
    losses = [step.losses["distil"] for step in eraser.steps(backbone, task)]
    assert sum(losses[-2:]) < 0.6 * sum(losses[:2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ema_decay": 1.0}, "ema_decay 1.0 .* expected 0 or more, and an ema_decay below 1"),
        ({"weight_decay": -1.0}, "weight_decay -1.0"),
        ({"clip": 0.0}, "sdd's clip is 0.0: expected a positive number"),
        ({"iterations": 0}, "sdd's iterations is 0"),
        ({"roles": "printed"}, "unknown sdd's roles 'printed'"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        erase.build("sdd", change, None)


def test_a_group_of_the_text_encoder_is_refused(backbone):
    with pytest.raises(ExpungeError, match="expected a group of the denoiser"):
        SDD(group="text-mlp").check(backbone)
