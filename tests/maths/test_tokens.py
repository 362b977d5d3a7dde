import pytest
import torch

from expunge.maths.tokens import drawn, nearest, on_simplex, through


def bisected(row: list[float]) -> list[float]:
    """The projection by bisection on the shift, in Python's own numbers."""
    low, high = min(row) - 1, max(row)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(p - middle, 0) for p in row) > 1 else (low, middle)
    return [max(p - low, 0) for p in row]


@pytest.mark.parametrize("spread", [1e-3, 0.3, 20.0])
@pytest.mark.parametrize("width", [1, 2, 7, 500])
def test_the_projection_is_that_of_bisection(spread, width):
    points = spread * torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    found = on_simplex(points)
    for row, projected in zip(points.double().tolist(), found.double(), strict=True):
        assert torch.allclose(projected, torch.tensor(bisected(row), dtype=torch.float64), atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(3), atol=1e-5)
    assert (found >= 0).all()


def test_no_other_point_of_the_simplex_is_nearer():
    generator = torch.Generator().manual_seed(1)
    point = torch.randn(1, 5, generator=generator)
    others = torch.distributions.Dirichlet(torch.full((5,), 0.3)).sample((2000,))
    own = (on_simplex(point) - point).square().sum()
    assert (own <= (others - point).square().sum(-1) + 1e-6).all()


def test_what_lies_on_the_simplex_stays():
    for row in ([0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]):
        assert torch.allclose(on_simplex(torch.tensor([row])), torch.tensor([row]), atol=1e-7)
    assert on_simplex(torch.tensor([[5.0, 5.0, -5.0]])).tolist() == [[0.5, 0.5, 0.0]]
    assert on_simplex(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_nearest_token_is_that_of_the_greatest_cosine():
    generator = torch.Generator().manual_seed(2)
    vectors, table = torch.randn(6, 8, generator=generator), torch.randn(30, 8, generator=generator)
    table *= torch.rand(30, 1, generator=generator) * 10  # longer ones would win a plain product
    cosines = [[float(v @ t / (v.norm() * t.norm())) for t in table] for v in vectors]
    assert nearest(vectors, table).tolist() == [row.index(max(row)) for row in cosines]
    assert nearest(vectors, table).tolist() != (vectors @ table.T).argmax(-1).tolist()
    assert nearest(3 * table, table).tolist() == list(range(30)), "a token is its own nearest"


def test_a_token_is_drawn_by_its_share():
    chances = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25]]).repeat(6, 1)
    at = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 1 - 2**-24])
    assert drawn(chances, at).tolist() == [1, 1, 3, 3, 4, 4]
    assert drawn(8 * chances, at).tolist() == [1, 1, 3, 3, 4, 4], "of their sum"
    ends = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert drawn(ends, torch.tensor([1 - 2**-24])).tolist() == [1], "none that has no chance"


@pytest.mark.parametrize(("clip", "expected"), [(None, [3.0, -0.5, -7.0]), (1.0, [1.0, -0.5, -1.0])])
def test_a_choice_hands_its_gradient_on(clip, expected):
    soft = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    hard = torch.tensor([1e8, 1e-8, 1.0])
    chosen = through(soft, hard, clip)
    assert torch.equal(chosen, hard)
    (gradient,) = torch.autograd.grad((chosen * torch.tensor([3.0, -0.5, -7.0])).sum(), soft)
    assert gradient.tolist() == expected
