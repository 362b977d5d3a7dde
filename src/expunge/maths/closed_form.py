"""Closed-form edits of linear maps."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def ridge_edit(
    weights: dict[str, Float[Tensor, "_ d"]],
    keys: Float[Tensor, "k d"],
    goals: Float[Tensor, "k d"],
    scales: Float[Tensor, "k"],
    lamb: float,
) -> dict[str, Float[Tensor, "_ d"]]:
    r"""Make every matrix answer each key as it used to answer that key's goal, staying near what it was.

    For each :math:`W_0` returns the minimiser of :math:`\sum_i s_i |W c_i - W_0 g_i|^2 + \lambda |W - W_0|^2`,

    .. math:: W = W_0 \Big(\sum_i s_i g_i c_i^T + \lambda I\Big) \Big(\sum_i s_i c_i c_i^T + \lambda I\Big)^{-1}

    with keys :math:`c_i`, goals :math:`g_i` and scales :math:`s_i`. This is UCE's Eq. 7 (2308.14761) with erased and
    preserved concepts in one list (a preserved concept is its own goal), and TIME's Eq. 5 (2303.08084) with every scale 1.
    The right-hand factors are the same for all matrices, so they are solved once, in float64.

    Args:
        weights: matrices by name, each ``[out, d]``.
        keys: text vectors to be changed or kept.
        goals: for each key, the text vector whose answer it should get.
        scales: weight of each pair.
        lamb: pull towards the old weights; positive.
    """
    c, g, s = keys.cpu().double(), goals.cpu().double(), scales.cpu().double()[:, None]  # not every device has float64
    eye = lamb * torch.eye(c.shape[1], dtype=torch.float64)
    # right = (sum s g c^T + lamb I) (sum s c c^T + lamb I)^-1; the second factor is symmetric, so solve from the left.
    right = torch.linalg.solve((s * c).T @ c + eye, (s * c).T @ g + eye).T
    return {name: (w.cpu().double() @ right).to(w) for name, w in weights.items()}


def ridge_edit_apart(
    weights: dict[str, Float[Tensor, "_ d"]],
    keys: Float[Tensor, "k d"],
    goals: Float[Tensor, "k d"],
    scales: Float[Tensor, "k"],
    lamb: float,
    phrases: Sequence[int],
) -> dict[str, Float[Tensor, "_ d"]]:
    r"""As `ridge_edit`, with the part along the keys' own answers taken out of the goals' answers, phrase by phrase.

    The keys begin with phrases of so many vectors each. With :math:`C, G` a phrase's keys and goals as rows, its goal is

    .. math:: V = G W_0^T - \langle u, G W_0^T \rangle \, u, \qquad u = C W_0^T / |C W_0^T|

    That is the answer to :math:`G - \beta C` with a number :math:`\beta` for each phrase and matrix: UCE's technique `tensor`
    (2308.14761's first script). Keys after the phrases have their goals' answers whole. Arguments as in `ridge_edit`.
    """
    c, g, s = keys.cpu().double(), goals.cpu().double(), scales.cpu().double()[:, None]
    factor, pivots = torch.linalg.lu_factor((s * c).T @ c + lamb * torch.eye(c.shape[1], dtype=torch.float64))
    changed: dict[str, Tensor] = {}
    for name, w in weights.items():
        old = w.cpu().double()
        own, wanted = c @ old.T, g @ old.T
        first = 0
        for size in phrases:
            rows = slice(first, first + size)
            wanted[rows] -= (own[rows] * wanted[rows]).sum() / own[rows].square().sum() * own[rows]
            first += size
        changed[name] = torch.linalg.lu_solve(factor, pivots, (s * c).T @ wanted + lamb * old.T).T.to(w)
    return changed


def reaching(
    edited: dict[str, Float[Tensor, "_ d"]],
    original: dict[str, Float[Tensor, "_ d"]],
    keys: Float[Tensor, "k d"],
    regular: float,
) -> Float[Tensor, "k d"]:
    r"""Vectors that edited matrices answer as the original ones answer ``keys``: what still reaches an erased concept.

    For each key :math:`c` returns the minimiser of :math:`\sum_W |W' c' - W c|^2 + \lambda |c'|^2` over all matrices at once,

    .. math:: c' = \Big(\lambda I + \sum_W W'^T W'\Big)^{-1} \sum_W W'^T W \, c

    Solved in float64. RECE's Eq. 8 (2407.12383).

    Args:
        edited: the matrices W' by name, each ``[out, d]``.
        original: the matrices W by the same names.
        keys: text vectors of the concept.
        regular: how much a short answer is preferred, lambda; positive.
    """
    left = regular * torch.eye(keys.shape[1], dtype=torch.float64)
    right = torch.zeros_like(left)
    for name, w in edited.items():
        now = w.cpu().double()
        left += now.T @ now
        right += now.T @ original[name].cpu().double()
    return torch.linalg.solve(left, right @ keys.cpu().double().T).T.to(keys)
