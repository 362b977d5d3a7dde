import math

import pytest
import torch

from expunge.core.errors import ExpungeError
from expunge.maths.training import GROWTH, SCALE, Averaged, Learned, Scaling, mse, numbers, pace, pulls, thin


def test_adam_moves_by_the_formula_and_leaves_untouched_tensors_alone():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([3.0])
    learned = Learned({"a": a, "b": b}, lr=0.1)
    value = learned.descend((learned.tensors()["a"] ** 3).sum())
    assert value == pytest.approx(1 - 8)
    gradient = 3 * a**2
    assert torch.allclose(learned.values()["a"], a - 0.1 * gradient / (gradient.abs() + 1e-8))
    assert torch.equal(learned.values()["b"], b)
    assert torch.equal(a, torch.tensor([1.0, -2.0])), "it learns copies"


def test_small_updates_of_half_precision_tensors_are_not_lost():
    learned = Learned({"w": torch.ones(4, dtype=torch.bfloat16)}, lr=1e-4)
    for _ in range(100):
        learned.descend(learned.tensors()["w"].float().sum())
    assert learned.values()["w"].dtype == torch.bfloat16
    assert learned.values()["w"].float().mean() == pytest.approx(0.99, abs=2e-3)


@pytest.mark.parametrize(("rate", "unseen"), [(1e-5, 0.997), (1e-3, 0.617), (3e-3, 0.317), (0.2, 0.0)])
def test_what_bfloat16_shows_of_a_prompt_s_updates(rate, unseen):
    """A step of Adam is its rate long. Where half the distance of two bfloat16 numbers is longer, it is not seen.

    From 2^e on, half of that distance is 2^(e - 8). So of normal numbers those are left where they were that are larger than
    the first 2^e with 2^(e - 8) > rate: ``unseen`` is this share. The model reads such a prompt, and a key stores it. What is
    learned is not lost, since the copies are float32: it is seen when it has added up.
    """
    first = next(2.0**e for e in range(-20, 20) if 2.0 ** (e - 8) > rate)
    assert math.erfc(first / 2**0.5) == pytest.approx(unseen, abs=1e-3), "the share by the normal distribution"
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(40_000, generator=generator).bfloat16()
    signs = torch.randint(0, 2, start.shape, generator=generator) * 2.0 - 1
    learned, precise = Learned({"p": start}, rate), Learned({"p": start.float()}, rate)
    for one in (learned, precise):
        one.descend((one.tensors()["p"].float() * signs).sum())
    still = {name: float((one.values()["p"].float() == start.float()).float().mean()) for name, one in
             (("bfloat16", learned), ("float32", precise))}  # fmt: skip
    assert still["bfloat16"] == pytest.approx(unseen, abs=0.01)
    assert still["float32"] < 0.01
    for _ in range(99):
        learned.descend((learned.tensors()["p"].float() * signs).sum())
    moved = learned.state("l")["l/value/p"] - start.float()
    assert torch.allclose(moved, -100 * rate * signs, rtol=1e-2, atol=1e-6), "nothing is lost of a hundred updates"


def test_gradient_descent_and_distance():
    learned = Learned({"w": torch.tensor([1.0, 2.0])}, lr=0.5, optimizer="sgd")
    origin = {"w": torch.tensor([0.0, 4.0])}
    assert learned.squared_distance(origin).item() == pytest.approx(1 + 4)
    learned.descend(learned.squared_distance(origin))
    assert torch.allclose(learned.values()["w"], torch.tensor([0.0, 4.0]))


def test_a_decaying_rate_is_a_straight_line_to_zero():
    assert [pace("linear", i, 4) for i in range(4)] == [1, 0.75, 0.5, 0.25]
    assert pace("none", 3, 4) == 1
    learned = Learned({"a": torch.zeros(1)}, 0.1, "sgd")
    for i in range(4):
        learned.descend(learned.tensors()["a"].sum(), pace("linear", i, 4))
    assert learned.values()["a"].item() == pytest.approx(-0.1 * 2.5)


def test_a_long_gradient_is_cut_to_the_length_of_the_clip():
    for clip, moved in ((1.0, [-0.6, -0.8]), (10.0, [-3.0, -4.0]), (None, [-3.0, -4.0])):
        learned = Learned({"a": torch.zeros(1), "b": torch.zeros(1)}, 1.0, "sgd")
        now = learned.tensors()
        learned.descend(3 * now["a"].sum() + 4 * now["b"].sum(), clip=clip)
        assert torch.cat(list(learned.values().values())).tolist() == pytest.approx(moved, rel=1e-4)


def test_what_is_not_finite_is_not_cut_and_stays_where_it_is():
    """The length is NaN then: the other tensors move as they would."""
    learned = Learned({"a": torch.zeros(1), "b": torch.zeros(1)}, 1.0, "sgd")
    now = learned.tensors()
    learned.descend(float("nan") * now["a"].sum() + 4 * now["b"].sum(), clip=1.0)
    assert learned.values()["b"].item() == -4.0
    assert learned.values()["a"].isnan().all()


def test_gradients_of_a_mean_over_many_numbers_come_back_through_float16():
    """2 * 1e-3 / 2^18 is an eighth of the least number of float16. Plain descent moves by the gradient."""
    start = torch.zeros(2**18, dtype=torch.float16)
    goal = -1e-3 * torch.rand(len(start), generator=torch.Generator().manual_seed(0))
    moved = {}
    for dtype, through in ((torch.float32, None), (torch.float16, None), (torch.float32, torch.float16)):
        learned = Learned({"w": start.to(dtype)}, 1.0, "sgd", through=through)
        now = learned.tensors()["w"]
        learned.descend(mse(now if through is None else now.to(through), goal))
        moved[dtype, through] = learned.state("s")["s/value/w"]
    whole = moved.pop((torch.float32, None))
    assert torch.allclose(whole, 2 * goal / 2**18)
    for other in moved.values():
        assert (other - whole).abs().max() < 0.01 * whole.abs().max()


def test_losses_are_scaled_as_pytorch_scales_them():
    """Some gradients in a row that are not finite, then enough that are."""
    ours, theirs = Scaling(), torch.amp.GradScaler("cpu", growth_interval=GROWTH)
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for update in range(GROWTH + 5):
        pull = torch.tensor([3.0, float("inf") if update in (0, 1, 4) else 1.0])
        before, gradient = weight.detach().clone(), ours.factor * pull
        weight.grad = theirs.scale(pull)
        theirs.step(optimizer)
        theirs.update()
        assert ours.unscale([gradient]) is not torch.equal(weight.detach(), before)
        assert ours.factor == theirs.get_scale()
        assert not gradient.isfinite().all() or torch.equal(gradient, pull)
    assert ours.factor == 2 * SCALE / 2**3


def _endless(w):
    """A finite loss of numbers whose gradient is infinite."""
    return (w.float() - w.float().detach()).sqrt().sum()


def test_a_gradient_that_overflows_is_asked_for_again_and_resuming_goes_on_with_its_factor():
    def run(learned, updates):
        for _ in range(updates):
            learned.descend((learned.tensors()["w"] * 40.0).sum(), clip=1.0)
        return learned

    def fresh():
        return Learned({"w": torch.ones(3, dtype=torch.float16)}, lr=0.1)

    exact = run(Learned({"w": torch.ones(3)}, lr=0.1), 8)
    whole = run(fresh(), 8)
    assert torch.allclose(whole.state("x")["x/value/w"], exact.state("x")["x/value/w"]), "no update is lost"
    state = whole.state("x")
    assert state["x/scaling"].tolist() == [2**10, 8], "40 * 2^10 is the first below 65504"
    resumed = fresh()
    resumed.load("x", state)
    run(resumed, 2)
    run(whole, 2)
    assert all(torch.equal(t, whole.state("x")[name]) for name, t in resumed.state("x").items())
    with pytest.raises(ExpungeError, match="has no 'x/scaling'"):
        fresh().load("x", {name: t for name, t in state.items() if name != "x/scaling"})
    with pytest.raises(ExpungeError, match=r"in float16 that is not finite, .*: expected bfloat16 or float32"):
        for _ in range(2):  # the first is left out: its graph was not kept
            whole.descend(_endless(whole.tensors()["w"]))


def test_gradients_that_are_summed_move_as_one():
    for dtype in (torch.float32, torch.float16):
        apart, whole = (Learned({"w": torch.ones(2, dtype=dtype)}, 0.1) for _ in range(2))
        parts = [apart.pull((apart.tensors()["w"].float() ** power).sum()) for power in (2, 3)]
        apart.move({"w": parts[0]["w"] + parts[1]["w"]}, pace=0.5, clip=1.0)
        now = whole.tensors()["w"].float()
        whole.descend((now**2).sum() + (now**3).sum(), pace=0.5, clip=1.0)
        assert torch.allclose(apart.state("x")["x/value/w"], whole.state("x")["x/value/w"])


def test_parts_descend_together_as_each_would_alone():
    def descend(parts, loss):
        for part, gradients in zip(parts, pulls(parts, loss), strict=True):
            part.move(gradients)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        apart, together = (
            [Learned({"w": torch.ones(2, dtype=dtype)}, 0.1), Learned({"w": torch.ones(3, dtype=dtype)}, 0.01, "adamw")]
            for _ in range(2)
        )
        for _ in range(3):
            a, b = (part.tensors()["w"] for part in together)
            descend(together, (a.float() ** 2).sum() / 9 + (b.float() ** 3).sum() / 7)
            apart[0].descend((apart[0].tensors()["w"].float() ** 2).sum() / 9)
            apart[1].descend((apart[1].tensors()["w"].float() ** 3).sum() / 7)
        for one, other in zip(apart, together, strict=True):
            assert torch.equal(one.values()["w"], other.values()["w"])
    descend(together, (together[1].tensors()["w"]).sum())
    assert torch.equal(together[0].values()["w"], apart[0].values()["w"]), "what a loss does not know stays"


def test_terms_of_a_loss_are_read_as_they_are():
    terms = {"erase": torch.tensor(0.1, requires_grad=True), "keep": torch.tensor(0.1, dtype=torch.float64)}
    assert numbers(terms) == {"erase": float(torch.tensor(0.1)), "keep": 0.1}
    assert numbers({"retain": torch.tensor(float("inf"))}) == {"retain": math.inf}
    assert numbers({}) == {}


def test_low_rank_changes_begin_as_lora_s_do(backbone):
    layers = backbone.layers("transformer")
    for drawn_from, rank in (("uniform", 3), ("gaussian", 3), ("gaussian", 12)):
        factors = thin(backbone, layers, rank, torch.Generator().manual_seed(0), drawn_from)
        assert all((t == 0).all() for n, t in factors.items() if n.endswith(".up"))
        scaled = []
        for n, t in factors.items():
            if n.endswith(".down"):
                deviation = 1 / rank if drawn_from == "gaussian" else (t[0].numel() * 3) ** -0.5
                scaled.append(t.flatten() / deviation)
        drawn = torch.cat(scaled)
        assert drawn.std().item() == pytest.approx(1, rel=0.02)
        kurtosis = (drawn**4).mean().item() / (drawn**2).mean().item() ** 2
        assert kurtosis == pytest.approx(3.0 if drawn_from == "gaussian" else 1.8, rel=0.1)


def test_a_state_resumes_bit_for_bit_and_a_foreign_one_is_refused():
    def run(learned, steps):
        for _ in range(steps):
            learned.descend((learned.tensors()["w"] ** 2).sum())

    whole = Learned({"w": torch.tensor([1.0, 2.0]), "still": torch.ones(1)}, lr=0.1)
    run(whole, 3)
    state = whole.state("x")
    run(whole, 2)
    resumed = Learned({"w": torch.tensor([1.0, 2.0]), "still": torch.ones(1)}, lr=0.1)
    resumed.load("x", state)
    run(resumed, 2)
    assert torch.equal(resumed.values()["w"], whole.values()["w"])
    with pytest.raises(ExpungeError, match="state of the same run"):
        resumed.load("y", state)


def test_an_average_of_tensors_in_half_precision_is_kept_whole():
    """Steps of 1e-4 near 1 are lost in float16, where numbers stand a thousandth apart."""
    student = Learned({"a": torch.ones(3, dtype=torch.float16)}, 2e-4, "sgd")
    average, expected, value = Averaged(student, 0.9), 1.0, 1.0
    for _ in range(40):
        student.descend(student.tensors()["a"].float().sum() / 2)
        value -= 1e-4
        average.follow()
        expected = 0.9 * expected + 0.1 * value
    assert torch.allclose(average.state("s")["s/value/a"], torch.full((3,), expected), atol=1e-6)
    assert average.values()["a"].dtype == torch.float16
    assert average.values()["a"][0] == torch.tensor(expected).half() < 1
    other = Averaged(student, 0.9)
    other.load("s", average.state("s"))
    assert torch.equal(other.state("s")["s/value/a"], average.state("s")["s/value/a"])
    with pytest.raises(ExpungeError, match="has no 'else/value/a'"):
        other.load("else", average.state("s"))
