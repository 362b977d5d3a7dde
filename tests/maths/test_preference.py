"""Preference losses against NumPy, and what the sign that the paper misprints does."""

import numpy as np
import pytest
import torch

from expunge.maths.preference import Changes, dpo, kto, row_errors


@pytest.fixture
def predictions():
    """Noise, and predictions for both images by the trained model and by the reference: three pairs."""
    rng = np.random.default_rng(0)
    noise, *others = (rng.normal(size=(3, 2, 4, 4)) for _ in range(5))
    return noise, *(noise + 0.1 * other for other in others)


def changes_of(predictions) -> Changes:
    noise, *given = (torch.tensor(p) for p in predictions)
    plus, plus_ref, minus, minus_ref = (row_errors(p, noise).double() for p in given)
    return Changes(plus - plus_ref, minus - minus_ref)


def minus_log_sigmoid(z):
    return np.log1p(np.exp(-z))


@pytest.mark.parametrize("beta", [0.5, 100.0])
def test_losses_are_the_formulas(predictions, beta):
    noise, *given = predictions
    m_plus, r_plus, m_minus, r_minus = (((p - noise) ** 2).sum(axis=(1, 2, 3)) / 32 for p in given)
    plus, minus = m_plus - r_plus, m_minus - r_minus
    changes = changes_of(predictions)
    assert dpo(changes, beta).item() == pytest.approx(minus_log_sigmoid(-beta * (plus - minus)).mean(), rel=1e-5)
    assert kto(changes, beta).item() == pytest.approx(minus_log_sigmoid(-beta * (plus.mean() - minus)).mean(), rel=1e-5)


def test_the_reference_itself_is_at_log_2_with_half_of_beta_as_gradient():
    wanted, unwanted = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss = dpo(Changes(wanted, unwanted), 8.0)
    assert loss.item() == pytest.approx(np.log(2))
    loss.backward()
    assert torch.allclose(wanted.grad, torch.full((4,), 8.0 / 2 / 4)), "errors on the wanted image should fall"
    assert torch.allclose(unwanted.grad, torch.full((4,), -8.0 / 2 / 4)), "and rise on the other"


@pytest.mark.parametrize("loss", [dpo, kto])
@pytest.mark.parametrize(("no_grad", "learns"), [("none", "both"), ("ascent", "wanted"), ("descent", "unwanted")])
def test_one_side_can_be_held_fixed(loss, no_grad, learns):
    sides = Changes(torch.tensor([0.1, -0.2], requires_grad=True), torch.tensor([0.3, 0.0], requires_grad=True))
    value = loss(sides.sided(no_grad), 3.0)
    assert value.item() == pytest.approx(loss(sides, 3.0).item()), "the value is the same"
    value.backward()
    for name, side in sides._asdict().items():
        assert (side.grad is not None) == (learns in ("both", name)), name


def test_the_printed_plus_starves_the_gradient(predictions):
    """DUO's Eq. 4 prints ``+`` before the reference's error on x-: at the start the sigmoid is then saturated."""
    noise, _, plus_ref, _, minus_ref = (torch.tensor(p) for p in predictions)
    beta = 5_000.0  # beta times an error of 0.01 is large, as in DUO's settings
    gradients = {}
    for sign in (-1, 1):
        plus, minus = plus_ref.clone().requires_grad_(), minus_ref.clone().requires_grad_()
        unwanted = row_errors(minus, noise) + sign * row_errors(minus_ref, noise)
        loss = dpo(Changes(row_errors(plus, noise) - row_errors(plus_ref, noise), unwanted), beta)
        loss.backward()
        gradients[sign] = (plus.grad.abs().max().item(), minus.grad.abs().max().item())
    assert min(gradients[-1]) > 1
    assert max(gradients[1]) < 1e-20
