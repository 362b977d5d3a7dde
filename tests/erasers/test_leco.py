import dataclasses

import pytest
import torch

from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.erasers.leco import LECO
from expunge.maths.trajectories import Sampling

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


def test_bad_settings_are_refused():
    for change in ({"rank": 0}, {"alpha": 0.0}):
        with pytest.raises(ExpungeError, match=next(iter(change))):
            dataclasses.replace(SHORT, **change)
