import pytest
import torch

from expunge.maths.closed_form import reaching, ridge_edit, ridge_edit_apart


@pytest.fixture
def problem():
    torch.manual_seed(0)
    w = {"k": torch.randn(7, 5), "v": torch.randn(3, 5)}
    return w, torch.randn(4, 5), torch.randn(4, 5), torch.tensor([1.0, 0.5, 2.0, 0.1])


def test_equals_the_literal_sums_of_equation_7(problem):
    weights, keys, goals, scales = problem
    found = ridge_edit(weights, keys, goals, scales, 0.3)
    for name, w in weights.items():
        left, right = 0.3 * w.double(), 0.3 * torch.eye(5, dtype=torch.float64)
        for c, g, s in zip(keys.double(), goals.double(), scales.double(), strict=True):
            left = left + s * torch.outer(w.double() @ g, c)
            right = right + s * torch.outer(c, c)
        assert torch.allclose(found[name].double(), left @ torch.inverse(right), atol=1e-6)


def test_is_the_minimum_of_its_objective(problem):
    weights, keys, goals, scales = problem
    w0 = weights["k"].double()
    w = ridge_edit({"k": w0}, keys.double(), goals.double(), scales.double(), 0.3)["k"].requires_grad_()
    miss = (keys.double() @ w.T - goals.double() @ w0.T).square().sum(1)
    ((scales.double() * miss).sum() + 0.3 * (w - w0).square().sum()).backward()
    assert w.grad.abs().max() < 1e-10


def test_a_preserved_vector_alone_changes_nothing(problem):
    weights, keys, _, scales = problem
    found = ridge_edit(weights, keys, keys, scales, 0.5)
    assert torch.allclose(found["k"], weights["k"], atol=1e-5)


def test_a_strong_scale_maps_the_key_onto_its_goal(problem):
    weights, keys, goals, _ = problem
    found = ridge_edit(weights, keys[:1], goals[:1], torch.tensor([1e6]), 0.5)
    assert torch.allclose(found["k"] @ keys[0], weights["k"] @ goals[0], atol=1e-4)


def test_what_still_reaches_is_the_minimum_of_its_objective(problem):
    weights, keys, _, _ = problem
    edited = {name: torch.randn(w.shape) for name, w in weights.items()}
    found = reaching(edited, weights, keys.double(), 0.3).requires_grad_()
    misses = sum(
        (found @ edited[n].double().T - keys.double() @ w.double().T).square().sum() for n, w in weights.items()
    )
    (misses + 0.3 * found.square().sum()).backward()
    assert found.grad.abs().max() < 1e-10


def test_unedited_matrices_are_reached_by_the_concept_itself_and_a_strong_pull_by_nothing(problem):
    weights, keys, _, _ = problem
    assert torch.allclose(reaching(weights, weights, keys, 1e-9), keys, atol=1e-4)
    assert reaching(weights, weights, keys, 1e9).abs().max() < 1e-6


def test_apart_from_no_phrase_it_is_the_plain_edit(problem):
    plain, apart = ridge_edit(*problem, 0.3), ridge_edit_apart(*problem, 0.3, [])
    for name, w in plain.items():
        assert torch.allclose(w, apart[name], atol=1e-5)


def test_a_strong_scale_leaves_nothing_along_the_key_s_own_answer(problem):
    weights, keys, goals, _ = problem
    found = ridge_edit_apart(weights, keys[:1], goals[:1], torch.tensor([1e6]), 0.5, [1])
    for name, w in weights.items():
        own, wanted, now = w @ keys[0], w @ goals[0], found[name] @ keys[0]
        assert torch.allclose(now, wanted - (wanted @ own) / (own @ own) * own, atol=1e-4)
