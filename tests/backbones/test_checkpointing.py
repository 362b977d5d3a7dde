"""Training in less memory gives the same gradients: the hooks that a block heard are heard again on the way back."""

import pytest
import torch

from expunge import backbones
from expunge.core.adapter import Adapter
from expunge.core.peak_bytes import PeakBytes
from expunge.erasers.kpop import injected
from expunge.erasers.spm import Transport
from expunge.maths.training import thin
from tiny import tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

MAKERS = {"sd": tiny_pipeline, "sdxl": tiny_xl_pipeline, "sd3": tiny_sd3_pipeline}


def gradients(backbone, checkpointing, place):
    """Of weights, a prompt and an adapter, in one loss of several evaluations that hear different things."""
    backbone.checkpointing = checkpointing
    generator = torch.Generator().manual_seed(0)
    weights = {n: t.clone().requires_grad_() for n, t in backbone.tensors(backbone.group("xattn")).items()}
    factors = {
        n: (0.1 * torch.randn(t.shape, generator=generator)).requires_grad_()
        for n, t in thin(backbone, backbone.layers("transformer"), 2, generator).items()
    }
    tokens = torch.randn((1, 3, backbone.encode(["dog"]).embeds.shape[-1]), generator=generator).requires_grad_()
    x = torch.cat([backbone.noise(1), backbone.noise(2)])
    with torch.no_grad():
        dog, cat = backbone.encode(["dog"] * 2), backbone.encode(["cat"] * 2)
    asked = [dog, cat] if place is None else [dog, injected(dog, tokens.expand(2, -1, -1), place), cat]
    with backbone.weights(weights), backbone.adapted(factors, 0.5):
        answers = [backbone.predict(x, 500, cond) for cond in asked]
        loss = torch.stack([(i + 1) * a.square().mean() for i, a in enumerate(answers)]).sum()
        learned = [*weights.values(), *factors.values(), *([] if place is None else [tokens])]
        found = torch.autograd.grad(loss, learned, allow_unused=True)
    backbone.checkpointing = False
    return [loss, *(g for g in found if g is not None)]


@pytest.mark.parametrize(
    ("family", "place"),
    [("sd", "down-mid-up"), ("sd", "mid"), ("sdxl", "down-mid-up"), ("sd", None), ("sdxl", None), ("sd3", None)],
)
@pytest.mark.parametrize("gated", [False, True])
def test_gradients_are_the_same(family, place, gated):
    backbone = backbones.of(MAKERS[family]())
    if gated:
        factors = thin(backbone, backbone.layers("transformer"), 1, torch.Generator().manual_seed(1))
        factors = {n: t + 0.1 if n.endswith(".up") else t for n, t in factors.items()}
        backbone.attach(Adapter(factors, gate=Transport([["church"]])))
    plain, again = (gradients(backbone, on, place) for on in (False, True))
    assert len(plain) == len(again) > 10
    for a, b in zip(plain, again, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
    assert any(g.abs().sum() > 0 for g in plain[1:])


def test_it_takes_less_memory():
    backbone = backbones.of(tiny_pipeline())
    peaks = []
    for on in (False, True):
        with PeakBytes() as memory:
            gradients(backbone, on, None)
        peaks.append(memory.peak)
    assert peaks[1] < 0.8 * peaks[0]
