import dataclasses
import math

import pytest
import torch
from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup

import expunge
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.erasers.spm import SPM, latent_anchor
from expunge.maths.training import pace
from expunge.maths.trajectories import Sampling

SHORT = SPM(iterations=2, batch=2, lr=1e-3, warmup=0, anchors=3, sampling=Sampling(sampling_steps=4))
TASK = Task(targets=[Concept(name="church")], seed=1)


def raw(backbone, x, t, embeds):
    """The denoiser, called without expunge."""
    with torch.no_grad():
        return backbone.components()["unet"](x, t, encoder_hidden_states=embeds.expand(len(x), -1, -1)).sample


def words(backbone, text):
    with torch.no_grad():
        return backbone.encode([text])


def merged(backbone, factors):
    """A second model whose weights hold the adapter: W + U D."""
    base = backbone.tensors([f"{n.removesuffix('.down')}.weight" for n in factors if n.endswith(".down")])
    return {
        f"{n}.weight": base[f"{n}.weight"]
        + torch.einsum("or...,ri...->oi...", factors[f"{n}.up"], factors[f"{n}.down"])
        for n in {name.rpartition(".")[0] for name in factors}
    }


@pytest.mark.parametrize("arm", ["online-student", "online-frozen", "bank"])
@pytest.mark.parametrize("anchor", [None, "dog"])
def test_the_losses_of_an_update_are_the_formulas(backbone, arm, anchor):
    eraser = dataclasses.replace(
        SHORT, negative_guidance=1.5, empty_anchors=1, sampling=dataclasses.replace(SHORT.sampling, arm=arm)
    )
    task = dataclasses.replace(TASK, targets=[Concept(name="church", anchor=anchor)])
    updates = iter(eraser.steps(backbone, task))
    first = next(updates)
    before = first.edit().tensors()  # as the second update finds it
    second = next(updates)
    c, c_s, null = words(backbone, "church"), words(backbone, anchor or ""), words(backbone, "")
    source = eraser.sampling.source(backbone, c, null, task, "spm church", 4)
    student = backbone.adapted(before)
    with eraser.sampling.sampled_from(student):
        points = source.draw(1, 2)
    x, t = points.x, points.t
    generator = task.generator("spm anchors", 0, 1)
    anchors = [
        e for _ in range(2) for e in [null.embeds[0], *(latent_anchor(c.embeds[0], generator) for _ in range(2))]
    ]
    anchors = torch.stack(anchors)
    wide_x, wide_t = x.repeat_interleave(3, 0), t.repeat_interleave(3, 0)
    e_c, e_s = raw(backbone, x, t, c.embeds), raw(backbone, x, t, c_s.embeds)
    goal = e_s - 1.5 * (e_c - e_s)
    kept = raw(backbone, wide_x, wide_t, anchors)
    with backbone.weights(merged(backbone, before)):
        erase = (raw(backbone, x, t, c.embeds) - goal).square().mean()
        keep = (raw(backbone, wide_x, wide_t, anchors) - kept).square().mean()
    assert second.losses["erase"] == pytest.approx(erase.item(), rel=1e-3)
    assert second.losses["anchors"] == pytest.approx(keep.item(), rel=1e-2)
    assert first.losses["anchors"] == 0, "a new membrane changes nothing"


def test_an_update_is_adamw_on_both_terms(backbone):
    eraser = dataclasses.replace(SHORT, lamb=50.0, decay="none")
    updates = iter(eraser.steps(backbone, TASK))
    before = {n: t.clone().requires_grad_() for n, t in next(updates).edit().tensors().items()}
    second = next(updates)
    c = words(backbone, "church")
    with backbone.adapted({n: t.detach() for n, t in before.items()}):
        source = eraser.sampling.source(backbone, c, words(backbone, ""), TASK, "spm church", 4)
        points = source.draw(1, 2)
    unet = backbone.components()["unet"]
    ask = lambda x, t, e: unet(x, t, encoder_hidden_states=e.expand(len(x), -1, -1)).sample  # noqa: E731
    e_c, e_0 = (
        raw(backbone, points.x, points.t, c.embeds),
        raw(backbone, points.x, points.t, words(backbone, "").embeds),
    )
    generator = TASK.generator("spm anchors", 0, 1)
    anchors = torch.stack([latent_anchor(c.embeds[0], generator) for _ in range(6)])
    x, t = points.x.repeat_interleave(3, 0), points.t.repeat_interleave(3, 0)
    kept = raw(backbone, x, t, anchors)
    with backbone.weights(merged(backbone, before)):
        loss = (ask(points.x, points.t, c.embeds) - (2 * e_0 - e_c)).square().mean()
        loss = loss + 50.0 * (ask(x, t, anchors) - kept).square().mean()
        gradients = dict(zip(before, torch.autograd.grad(loss, list(before.values())), strict=True))
    after, seen = second.edit().tensors(), 0
    for name, g in gradients.items():
        if name.endswith(
            ".down"
        ):  # its first gradient was zero, so this update is Adam's first: m = g / 10, v = g^2 / 1000
            moved = 1e-3 * (0.1 / 0.19) * g / ((0.001 / 0.001999) ** 0.5 * g.abs() + 1e-8)
            expected = before[name] * (1 - 1e-3 * 0.01) - moved
            clear = g.abs() > 1e-7
            seen += int(clear.sum())
            assert torch.allclose(after[name][clear], expected[clear], atol=2e-5), name
    assert seen > 100


def test_latent_anchors_are_long_as_the_concept_and_rarely_like_it():
    concept = torch.randn((4, 3), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    drawn = [latent_anchor(concept, generator) for _ in range(3000)]
    lengths = torch.stack([d.norm() for d in drawn]) / concept.norm()
    assert 0.799 < lengths.min() < 0.81
    assert 1.19 < lengths.max() < 1.201
    cosines = torch.stack([torch.cosine_similarity(d.flatten(), concept.flatten(), dim=0) for d in drawn])
    # Of directions on a sphere in 12 dimensions, those with a positive cosine c are taken with probability 1 - c, the others
    # always: the mean is -E[c^2] / 2 over 1 - E|c| / 2, with E[c^2] = 1 / 12 and E|c| = gamma(6) / (sqrt(pi) gamma(6.5)).
    expected = -(1 / 24) / (1 - math.gamma(6) / math.gamma(6.5) / math.sqrt(math.pi) / 2)
    assert cosines.mean().item() == pytest.approx(expected, abs=4 * cosines.std().item() / math.sqrt(3000))


def test_the_rate_is_the_schedule_of_the_authors():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, 500, 3000, num_cycles=3)
    for update in range(3000):
        assert pace("cosine-restarts", update, 3000, 500, 3) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-12
        )
        optimizer.step()
        schedule.step()


def test_every_target_gets_a_membrane_and_a_gate_of_its_own(backbone):
    task = dataclasses.replace(TASK, targets=[Concept(name="church"), Concept(name="dog")])
    before = backbone.cost
    steps = list(SHORT.steps(backbone, task))
    assert [s.index for s in steps] == [0, 1, 2, 3]
    spent = backbone.cost - before
    assert spent.trained == SHORT.cost(2, 0).trained == 2 * 2 * 2 * 4
    assert abs(spent.forward / SHORT.cost(2, 0).forward - 1) < 0.5
    edit = steps[-1].edit()
    assert edit.gates == (("church",), ("dog",))
    alone = list(SHORT.steps(backbone, TASK))[-1].edit()
    for name, part in edit.layers.items():
        assert part.down.shape[0] == part.up.shape[1] == 2
        assert torch.equal(part.down[:1], alone.layers[name].down)
        assert torch.equal(part.up[:, :1], alone.layers[name].up)


def test_goes_on_bit_for_bit_in_the_middle_of_the_second_target(backbone):
    task = dataclasses.replace(TASK, targets=[Concept(name="church"), Concept(name="dog")])
    states = []
    for step in SHORT.steps(backbone, task):
        states.append(step.state())
        whole = step.edit()
    for at in range(3):
        resumed = list(SHORT.steps(backbone, task, states[at]))
        assert len(resumed) == 3 - at
        assert resumed[-1].edit().id == whole.id


def test_on_a_gate_it_is_refused_before_anything_is_trained(backbone):
    first = expunge.erase(backbone, "church", "spm", settings={"iterations": 1, "batch": 1, "warmup": 0})
    before = backbone.cost
    with (
        backbone.attached([first]),
        pytest.raises(ExpungeError, match=f"spm on top of edit {first.id}, whose gate reads the words"),
    ):
        expunge.erase(backbone, "dog", "spm")
    assert backbone.cost == before


def test_without_gates_it_is_open_to_all(backbone):
    (_, last) = dataclasses.replace(SHORT, gated=False).steps(backbone, TASK)
    assert last.edit().gates == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"anchors": 0}, "anchors"), ({"empty_anchors": 4}, "0 to 3"), ({"warmup": 2}, "0 to 1"), ({"lamb": 0.0}, "lamb")],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        dataclasses.replace(SHORT, **change)
