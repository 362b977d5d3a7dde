import dataclasses

import pytest
import torch

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.eraser import Task, settings_of
from expunge.core.errors import ExpungeError
from expunge.erasers.esd import ESD
from expunge.maths.trajectories import Sampling
from tiny import still, tiny_pipeline

SHORT = ESD(iterations=1, batch=2, lr=1e-3, sampling=Sampling(sampling_steps=4))
TASK = Task(targets=[Concept(name="church")], seed=1)


def raw(backbone, points, text):
    """The denoiser, called without expunge."""
    with torch.no_grad():
        embeds = backbone.encode([text]).embeds.expand(len(points.x), -1, -1)
    return backbone.components()["unet"](points.x, points.t, encoder_hidden_states=embeds).sample


def points_of(backbone, eraser, text="church"):
    with torch.no_grad():
        cond, null = backbone.encode([text]), backbone.encode([""])
    return eraser.sampling.source(backbone, cond, null, TASK, "esd", eraser.batch).draw(0, eraser.batch)


@pytest.mark.parametrize("arm", ["online-student", "online-frozen", "bank"])
def test_one_update_is_adam_on_equation_7(backbone, arm):
    eraser = dataclasses.replace(SHORT, negative_guidance=1.5, sampling=dataclasses.replace(SHORT.sampling, arm=arm))
    points = points_of(backbone, eraser)
    with torch.no_grad():
        e_c, e_null = raw(backbone, points, "church"), raw(backbone, points, "")
    goal = e_null - 1.5 * (e_c - e_null)
    unet = backbone.components()["unet"]
    trained = {f"unet.{n}": p for n, p in unet.named_parameters() if ".attn2." in n}
    for p in trained.values():
        p.requires_grad_(True)
    expected = ((raw(backbone, points, "church") - goal) ** 2).mean()
    gradients = dict(zip(trained, torch.autograd.grad(expected, list(trained.values())), strict=True))
    for p in trained.values():
        p.requires_grad_(False)
    (step,) = eraser.steps(backbone, TASK)
    assert step.losses["erase"] == pytest.approx(expected.item(), rel=1e-4)
    edit = step.edit()
    assert set(edit.replaced) == set(trained)
    for name, g in gradients.items():
        moved = edit.replaced[name] - trained[name]
        clear = g.abs() > 1e-6  # Adam's first step is lr times the sign
        assert torch.allclose(moved[clear], -1e-3 * g[clear].sign(), atol=1e-5), name


def test_gradients_in_float16_are_those_of_float32(tmp_path):
    """Of the same weights and points; unscaled, one number in sixty vanishes, and a tensor's direction strays to 0.98."""
    pipe = still(tiny_pipeline())
    pipe.unet.register_to_config(sample_size=16)  # a thousand numbers in a mean: gradients are small
    pipe.to(torch.float16).save_pretrained(tmp_path / "half")
    eraser = dataclasses.replace(SHORT, batch=1, sampling=Sampling(sampling_steps=1))  # at noise
    gradients = {}
    for dtype in ("float32", "float16"):
        (step,) = eraser.steps(backbones.load(str(tmp_path / "half"), dtype=dtype), TASK)
        gradients[dtype] = {n: 10 * m for n, m in step.state().items() if "/exp_avg/" in n}  # Adam's first average
    assert len(gradients["float16"]) > 10
    for name, wanted in gradients["float32"].items():
        found = gradients["float16"][name]
        assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.99, name
        assert float(found.norm()) == pytest.approx(float(wanted.norm()), rel=0.05), name
        assert (found != 0).all() == (wanted != 0).all(), name


def test_the_port_s_guidance_is_the_original_s_and_one_more(backbone):
    original = dataclasses.replace(SHORT, negative_guidance=1.0)
    port = dataclasses.replace(SHORT, goal="port", negative_guidance=2.0)
    one, two = (next(iter(e.steps(backbone, TASK))).losses["erase"] for e in (original, port))
    assert one == pytest.approx(two, rel=1e-4)


FROZEN = Sampling(arm="online-frozen", sampling_steps=4)


def points_at(backbone, index, batch, updates):
    """The points of an update on the original's own trajectories."""
    with torch.no_grad():
        cond, null = backbone.encode(["church"]), backbone.encode([""])
    return FROZEN.source(backbone, cond, null, TASK, "esd", updates * batch).draw(index, batch)


def test_words_are_kept_by_the_term_that_kpop_has(backbone):
    """The second update's term by hand: a word drawn for each point, which the original answers."""
    eraser = dataclasses.replace(SHORT, iterations=2, batch=4, lr=1e-2, sampling=FROZEN)
    task = dataclasses.replace(TASK, retain=["dog", "radio"])
    first, second = [(s.losses, s.edit()) for s in eraser.steps(backbone, task)]
    assert first[0]["retain"] == pytest.approx(0, abs=1e-9), "nothing has moved yet"
    points = points_at(backbone, 1, 4, 2)
    drawn = torch.randint(0, 2, (4,), generator=task.generator("retain", 1)).tolist()

    def answers():
        each = [points._replace(x=points.x[i : i + 1], t=points.t[i : i + 1]) for i in range(4)]
        with torch.no_grad():
            return torch.cat([raw(backbone, p, task.retain[i]) for p, i in zip(each, drawn, strict=True)])

    before = answers()
    with backbone.attached([first[1]]):
        after = answers()
    assert second[0]["retain"] == pytest.approx(float(((after - before) ** 2).mean()), rel=1e-3)


def test_the_weight_of_kept_words_weighs_their_gradient(backbone):
    """Adam's running mean after the second update holds the gradient of erase + weight * retain."""
    task = dataclasses.replace(TASK, retain=["dog"])
    eraser = dataclasses.replace(SHORT, iterations=2, lr=1e-2, retain_weight=4.0, sampling=FROZEN)
    first, second = [s.state() for s in eraser.steps(backbone, task)]
    points = points_at(backbone, 1, 2, 2)
    with torch.no_grad():
        goal = 2 * raw(backbone, points, "") - raw(backbone, points, "church")
        stay = raw(backbone, points, "dog")
        cond, kept = backbone.encode(["church", "church"]), backbone.encode(["dog", "dog"])
    names = [n.removeprefix("student/value/") for n in first if "/value/" in n]
    leaves = {n: first[f"student/value/{n}"].clone().requires_grad_() for n in names}
    with backbone.weights(leaves):
        erase, keep = (backbone.predict(points.x, points.t, text) for text in (cond, kept))
        loss = ((erase - goal) ** 2).mean() + 4.0 * ((keep - stay) ** 2).mean()
        found = torch.autograd.grad(loss, list(leaves.values()))
    for name, gradient in zip(names, found, strict=True):
        held = second[f"student/exp_avg/{name}"] - 0.9 * first[f"student/exp_avg/{name}"]
        assert torch.allclose(held, 0.1 * gradient, rtol=1e-2, atol=1e-6), name
    assert max(float(g.abs().max()) for g in found) > 1e-3


def test_without_words_to_keep_it_is_the_paper_s(backbone):
    plain, weighed = (dataclasses.replace(SHORT, retain_weight=w) for w in (1.0, 9.0))
    one, two = (next(iter(e.steps(backbone, TASK))) for e in (plain, weighed))
    assert set(one.losses) == {"erase"}
    assert one.losses == pytest.approx(two.losses, rel=1e-6)
    assert "retain_weight" not in settings_of(plain), "the default is not part of a job's key"
    eraser, before = dataclasses.replace(SHORT, sampling=FROZEN), backbone.cost
    list(eraser.steps(backbone, dataclasses.replace(TASK, retain=["dog"])))
    assert (backbone.cost - before).trained == eraser.cost(1, 1).trained == 2 * eraser.cost(1, 0).trained


@pytest.mark.parametrize("arm", ["online-frozen", "bank"])
def test_erase_from_takes_the_target_out_of_another_concept(backbone, arm):
    eraser = dataclasses.replace(
        SHORT,
        goal="port",
        erase_from="dog",
        negative_guidance=0.7,
        sampling=dataclasses.replace(SHORT.sampling, arm=arm),
    )
    points = points_of(backbone, eraser, "dog")
    with torch.no_grad():
        goal = raw(backbone, points, "dog") - 0.7 * (raw(backbone, points, "church") - raw(backbone, points, ""))
        expected = ((raw(backbone, points, "dog") - goal) ** 2).mean()
    (step,) = eraser.steps(backbone, TASK)
    assert step.losses["erase"] == pytest.approx(expected.item(), rel=1e-4)


def test_the_rate_decays(backbone):
    moved = []
    constant = dataclasses.replace(SHORT, iterations=2, sampling=Sampling(arm="online-frozen", sampling_steps=4))
    first = next(iter(constant.steps(backbone, TASK))).state()
    for decay in ("none", "linear"):
        (step,) = dataclasses.replace(constant, decay=decay).steps(backbone, TASK, first)
        moved.append({n: t - first[n] for n, t in step.state().items() if "/value/" in n})
    for name, whole in moved[0].items():
        assert torch.allclose(moved[1][name], whole / 2, atol=1e-7), name
    assert max(float(m.abs().max()) for m in moved[0].values()) > 1e-4


@pytest.mark.parametrize("group", ["xattn", "xattn-strict", "noxattn", "selfattn", "full"])
def test_only_the_group_is_trained(backbone, group):
    (step,) = dataclasses.replace(SHORT, group=group).steps(backbone, TASK)
    edit = step.edit()
    assert set(edit.replaced) == set(backbone.group(group))
    base = backbone.stored(list(edit.replaced))
    assert any(not torch.equal(base[n], edit.replaced[n]) for n in base)


def test_a_bank_saves_ten_times_the_evaluations(backbone):
    for iterations in (200, 1000):
        bank = dataclasses.replace(ESD(), iterations=iterations, sampling=Sampling(arm="bank"))
        online = dataclasses.replace(ESD(), iterations=iterations)
        assert online.cost(1, 0).equivalents == iterations * (49 + 2 + 3)
        assert bank.cost(1, 0).equivalents == iterations * (2 + 3)
    again = ESD(iterations=3200, sampling=Sampling(arm="bank", reuse=4))
    assert again.cost(1, 0).equivalents == 3200 * (2 / 4 + 3)
    small = dataclasses.replace(SHORT, iterations=10, sampling=Sampling(arm="bank", sampling_steps=5, trajectories=4))
    before = backbone.cost
    list(small.steps(backbone, TASK))
    assert backbone.cost - before == small.cost(1, 0), "what is foreseen is what it takes"


def test_bad_settings_are_refused():
    for words, change in (
        ("iterations", {"iterations": 0}),
        ("lr", {"lr": 0.0}),
        ("expected goal port", {"erase_from": "dog"}),
    ):
        with pytest.raises(ExpungeError, match=words):
            dataclasses.replace(SHORT, **change)
