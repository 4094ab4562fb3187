"""The weights solve the problem that they are said to solve, for every divergence."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from veritune.objectives.divergences import CHI_SQUARE, KL, SOFT_CHI_SQUARE, Divergence
from veritune.objectives.scored.dual_weights import (
    chi_square_weights,
    kl_weights,
    soft_chi_square_weights,
)


class Solver(NamedTuple):
    weights: Callable[..., Tensor]
    divergence: Divergence


SOLVERS = {
    "kl": Solver(kl_weights, KL),
    "chi_square": Solver(chi_square_weights, CHI_SQUARE),
    "soft_chi_square": Solver(soft_chi_square_weights, SOFT_CHI_SQUARE),
}
ALL = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())


def weights_of(solver, scores, alpha):
    tensor = torch.tensor([scores], dtype=torch.float64)
    return solver.weights(tensor, torch.ones_like(tensor, dtype=torch.bool), alpha=alpha)[0]


def by_bisection(solver, scores, alpha):
    """max(0, (f')^-1((score - nu) / alpha)) with the nu that 200 halvings find."""
    tensor = torch.tensor(scores, dtype=torch.float64)
    count = len(scores)

    def at(nu):
        return solver.divergence.inverse_derivative((tensor - nu) / alpha).clamp(min=0)

    low, high = (float(tensor.max()) - alpha * count, float(tensor.max()) + alpha)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).mean() > 1 else (low, middle)
    return at((low + high) / 2)


@ALL
@pytest.mark.parametrize("alpha", [0.05, 0.7, 20.0])
def test_weights_are_those_of_a_search_for_the_dual_variable(solver, alpha):
    for scores in ([0.0], [1.0, -1.0], [0.3, 0.3, 0.3], [2.0, -0.5, 0.1, 0.1, -3.0, 1.9]):
        found = weights_of(solver, scores, alpha)
        assert torch.allclose(found, by_bisection(solver, scores, alpha), atol=1e-9)


@ALL
@given(
    scores=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=12),
    alpha=st.floats(1e-6, 1e6),
)
def test_weights_are_of_mean_one_and_ordered_as_the_scores(solver, scores, alpha):
    weights = weights_of(solver, scores, alpha)

    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    ordered = weights[torch.tensor(scores, dtype=torch.float64).argsort(stable=True)]
    assert (ordered.diff() >= -1e-12).all()


@ALL
@pytest.mark.parametrize("spread", [1e-3, 1.0, 3.0, 30.0, 1e5])
def test_weights_of_a_thousand_completions_are_of_mean_one(solver, spread):
    generator = torch.Generator().manual_seed(0)
    scores = spread * torch.randn(50, 1000, generator=generator, dtype=torch.float64)

    weights = solver.weights(scores, torch.ones_like(scores, dtype=torch.bool), alpha=1.0)

    assert torch.allclose(weights.mean(dim=-1), torch.ones(50).double(), rtol=0, atol=1e-13)


@ALL
def test_no_other_weights_have_more_score_less_divergence(solver):
    """The primal problem of the paper, at random weights whose mean is one."""
    scores = [2.0, -0.5, 0.1, 0.1, -3.0, 1.9]
    tensor = torch.tensor(scores, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)

    def gain(weights, divergence):
        return (weights * tensor - 0.7 * divergence.generator(weights)).mean(dim=-1)

    best = weights_of(solver, scores, 0.7)
    anywhere = 6 * torch.softmax(
        3 * torch.randn(2000, 6, generator=generator, dtype=torch.float64), dim=-1
    )
    near = 0.99 * best + 0.01 * anywhere

    for others in (anywhere, near):
        assert (gain(others, solver.divergence) <= gain(best, solver.divergence) + 1e-12).all()
    # Each divergence has its own best: the comparison tells them apart.
    for other in SOLVERS.values():
        if other is not solver:
            worse = gain(weights_of(other, scores, 0.7), solver.divergence)
            assert worse < gain(best, solver.divergence) - 1e-4


def test_chi_square_weights_drop_what_lies_far_below():
    """Two completions: the worse is dropped once it lies two alpha below."""
    assert weights_of(SOLVERS["chi_square"], [1.0, 0.0], 1.0).tolist() == pytest.approx([1.5, 0.5])
    assert weights_of(SOLVERS["chi_square"], [2.0, 0.0], 1.0).tolist() == pytest.approx([2.0, 0.0])
    assert weights_of(SOLVERS["chi_square"], [9.0, 0.0], 1.0).tolist() == pytest.approx([2.0, 0.0])
    assert weights_of(SOLVERS["soft_chi_square"], [9.0, 0.0], 1.0)[1] > 1e-5


@ALL
@pytest.mark.parametrize("alpha", [1e-300, 1e-8, 1.0, 1e8])
def test_weights_are_finite_for_the_largest_scores_and_the_smallest_alpha(solver, alpha):
    scores = torch.tensor([[1e4, -1e4, 0.0], [3e38, -3e38, 0.0], [-1e4, -1e4, -1e4]])

    weights = solver.weights(scores, torch.ones_like(scores, dtype=torch.bool), alpha=alpha)

    assert weights.dtype == torch.float32
    assert torch.isfinite(weights).all()
    assert torch.allclose(weights.mean(dim=-1), torch.ones(3))


@ALL
@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan"), float("inf")])
def test_absent_completions_have_weight_zero_and_no_effect(solver, filler):
    scores = torch.tensor([[1.0, filler, 0.2], [filler, filler, filler]], dtype=torch.float64)
    present = torch.tensor([[True, False, True], [False, False, False]])

    weights = solver.weights(scores, present, alpha=0.5)

    assert weights[0, 1] == 0
    assert torch.allclose(weights[0, [0, 2]], weights_of(solver, [1.0, 0.2], 0.5))
    assert weights[1].tolist() == [0.0, 0.0, 0.0]


@ALL
def test_weights_carry_no_gradient(solver):
    scores = torch.tensor([[1.0, 2.0]], requires_grad=True)

    weights = solver.weights(scores, torch.ones_like(scores, dtype=torch.bool), alpha=0.5)

    assert not weights.requires_grad
