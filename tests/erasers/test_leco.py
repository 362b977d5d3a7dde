import dataclasses

import pytest
import torch

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.texts import empty_is_unconditional
from expunge.erasers.kpop import KPOP
from expunge.erasers.leco import LECO
from expunge.erasers.spm import SPM
from expunge.maths.trajectories import Sampling
from tiny import tiny_pipeline, tiny_xl_pipeline

SHORT = LECO(
    iterations=2, batch=2, lr=1e-3, rank=3, alpha=1.5, sampling=Sampling(sampling_steps=4, arm="online-frozen")
)


@pytest.mark.parametrize("neutral", ["", "dog"])
def test_an_update_is_the_formula(backbone, neutral):
    task = Task(targets=[Concept(name="church", anchor=neutral)], seed=1)
    eraser = dataclasses.replace(SHORT, negative_guidance=0.7)
    before = backbone.cost
    updates = iter(eraser.steps(backbone, task))
    factors = next(updates).edit().tensors()
    second = next(updates)
    assert (backbone.cost - before).trained == 4
    with torch.no_grad():
        c, c_n, null = (backbone.encode([w]) for w in ("church", neutral, ""))
        points = eraser.sampling.source(backbone, c, null, task, "leco", 4).draw(1, 2)
        unet = backbone.components()["unet"]
        e_c, e_n, e_0 = (
            unet(points.x, points.t, encoder_hidden_states=k.embeds.expand(2, -1, -1)).sample for k in (c, c_n, null)
        )
        layers = {n.rpartition(".")[0] for n in factors}
        base = backbone.tensors([f"{n}.weight" for n in layers])
        with backbone.weights(
            {
                f"{n}.weight": base[f"{n}.weight"]
                + 0.5 * torch.einsum("or...,ri...->oi...", factors[f"{n}.up"], factors[f"{n}.down"])
                for n in layers
            }
        ):
            answer = unet(points.x, points.t, encoder_hidden_states=c.embeds.expand(2, -1, -1)).sample
    expected = (answer - (e_n - 0.7 * (e_c - e_0))).square().mean()
    assert second.losses["erase"] == pytest.approx(expected.item(), rel=1e-3)
    edit = second.edit()
    assert (edit.scale, edit.gates) == (0.5, ())
    assert all(part.down.shape[0] == 3 for part in edit.layers.values())


@pytest.mark.parametrize("method", ["leco", "spm", "kpop"])
def test_the_empty_text_is_the_prompt_in_every_arm_where_guidance_has_zeros_in_its_place(method):
    """SDXL as released; the authors' scripts encode it."""
    backbone = backbones.of(tiny_xl_pipeline())
    assert not empty_is_unconditional(backbone)
    assert empty_is_unconditional(backbones.of(tiny_pipeline()))
    bank = Sampling(sampling_steps=4, arm="bank")
    task = Task(targets=[Concept(name="church")], seed=1)
    if method == "kpop":
        eraser = KPOP(
            neutral="", goal="neutral", iterations=1, batch=2, k=2, lr=1e-3, keep="none", lamb=1.0, sampling=bank
        )
    else:
        eraser = LECO(iterations=1, batch=2, sampling=bank)
        if method == "spm":
            eraser = SPM(iterations=1, batch=2, warmup=0, sampling=bank)
    (step,) = eraser.steps(backbone, task)
    with torch.no_grad():
        c, empty, null = backbone.encode(["church"]), backbone.encode([""]), backbone.unconditional()
        drawn = {"leco": "leco", "spm": "spm church", "kpop": "kpop"}[method]
        points = bank.source(backbone, c, null, task, drawn, 2).draw(0, 2)
        e_c, e_n, e_0 = (backbone.predict(points.x, points.t, one) for one in (c, empty, null))
        away = {"leco": e_c - e_0, "spm": e_c - e_n, "kpop": torch.zeros_like(e_c)}[method]
        goal = e_n - getattr(eraser, "negative_guidance", 0.0) * away
        expected = float(((e_c - goal) ** 2).mean())  # at its first update the student is the original
        zeros = float(((e_c - (goal - e_n + e_0)) ** 2).mean())
    loss = step.losses["erase"]
    assert loss == pytest.approx(expected, rel=1e-3)
    assert abs(zeros - expected) > 0.01 * expected, "the two are told apart"


def test_bad_settings_are_refused():
    for change in ({"rank": 0}, {"alpha": 0.0}):
        with pytest.raises(ExpungeError, match=next(iter(change))):
            dataclasses.replace(SHORT, **change)
