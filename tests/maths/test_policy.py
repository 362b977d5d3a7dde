"""The policy against torch's own LSTM, and REINFORCE against finite differences of the expected reward."""

import itertools

import pytest
import torch

from expunge.maths.policy import Policy, Written, reinforce

PLACES, CHOICES, SIZE = 2, 3, 3
SEQUENCES = [torch.tensor(s) for s in itertools.product(range(CHOICES), repeat=PLACES)]
REWARDS = torch.linspace(-0.4, 1.0, len(SEQUENCES), dtype=torch.float64).flip(0).roll(2)


@pytest.fixture
def policy():
    return Policy(PLACES, CHOICES, SIZE, torch.Generator().manual_seed(0), torch.float64)


def expected(policy):
    """The reward of a drawn sequence, over all there are."""
    with torch.no_grad():
        odds = torch.stack([policy.of(s).log_probs.sum().exp() for s in SEQUENCES])
    assert float(odds.sum()) == pytest.approx(1.0)
    return float(odds @ REWARDS)


def test_reinforce_is_the_gradient_of_the_expected_reward(policy):
    """In expectation over all sequences, whatever the critic says: its values do not see the choices they are for."""
    total = torch.zeros((), dtype=torch.float64)
    for sequence, reward in zip(SEQUENCES, REWARDS.tolist(), strict=True):
        written = policy.of(sequence)
        odds = written.log_probs.detach().sum().exp()
        total = total + odds * reinforce(written, reward).actor
    gradients = torch.autograd.grad(total, policy.parameters, allow_unused=True)
    checked = 0
    for tensor, gradient in zip(policy.parameters, gradients, strict=True):
        if gradient is None:
            continue  # a critic, to which the policy's loss sends nothing
        for at in itertools.product(*map(range, tensor.shape)):
            sides = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    tensor[at] += step
                    sides.append(expected(policy))
                    tensor[at] -= step
            assert float(gradient[at]) == pytest.approx(-(sides[0] - sides[1]) / 2e-5, abs=1e-8)
            checked += 1
    assert checked == (PLACES - 1) * CHOICES * SIZE + 2 * 4 * SIZE * (SIZE + 1) + PLACES * CHOICES * (SIZE + 1)


def test_the_critic_learns_the_reward(policy):
    written = policy.of(SEQUENCES[4])
    losses = reinforce(written, 0.7)
    values = written.values.tolist()
    assert losses.critic.tolist() == pytest.approx(sum((0.7 - v) ** 2 for v in values))
    by_hand = -sum(log * (0.7 - v) for log, v in zip(written.log_probs.tolist(), values, strict=True))
    assert losses.actor.tolist() == pytest.approx(by_hand)


def test_a_walk_is_torch_s_lstm_with_a_head_and_an_embedding_for_each_place(policy):
    lstm = torch.nn.LSTM(SIZE, SIZE, batch_first=True).double()
    embeddings, (w_ih, w_hh, b_ih, b_hh), layers = (
        policy.parameters[: PLACES - 1],
        policy.parameters[PLACES - 1 : PLACES + 3],
        policy.parameters[PLACES + 3 :],
    )
    with torch.no_grad():
        for name, tensor in (("weight_ih", w_ih), ("weight_hh", w_hh), ("bias_ih", b_ih), ("bias_hh", b_hh)):
            getattr(lstm, f"{name}_l0").copy_(tensor)
        sequence = torch.tensor([2, 1])
        read = torch.stack([policy._start[0], embeddings[0][2]])
        hidden = lstm(read[None])[0][0]
        logs = [torch.log_softmax(layers[2 * k] @ hidden[k] + layers[2 * k + 1], 0) for k in range(PLACES)]
        values = [layers[2 * k] @ hidden[k - PLACES] + layers[2 * k + 1] for k in range(PLACES, 2 * PLACES)]
    written = policy.of(sequence)
    assert torch.allclose(written.log_probs, torch.stack([logs[0][2], logs[1][1]]))
    assert torch.allclose(written.values, torch.cat(values))


def test_what_is_drawn_follows_the_policy_and_the_seed_alone(policy):
    generator = torch.Generator().manual_seed(5)
    drawn = [policy.drawn(generator) for _ in range(600)]
    odds = {tuple(s.tolist()): policy.of(s).log_probs.detach().sum().exp().item() for s in SEQUENCES}
    for sequence, share in odds.items():
        seen = sum(tuple(d.choices.tolist()) == sequence for d in drawn) / len(drawn)
        assert abs(seen - share) < 4 * (share / len(drawn)) ** 0.5
    state = torch.random.get_rng_state()
    again = Policy(PLACES, CHOICES, SIZE, torch.Generator().manual_seed(0), torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters, policy.parameters, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state), "no global seed"


def test_descending_both_losses_finds_the_best_sequence():
    policy, generator = Policy(2, 3, 8, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(policy.parameters, lr=0.03)
    for _ in range(300):
        written: Written = policy.drawn(generator)
        losses = reinforce(written, 1.0 if written.choices.tolist() == [2, 0] else 0.0)
        optimizer.zero_grad()
        (losses.actor + losses.critic).backward()
        optimizer.step()
    assert policy.of(torch.tensor([2, 0])).log_probs.detach().sum().exp() > 0.8
