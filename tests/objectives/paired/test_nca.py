from math import exp, log

import pytest

from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import cyclic_problem
from veritune.objectives.optimum import win_probability
from veritune.objectives.paired.nca import nca_loss


def test_nca_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = nca_loss(pairs, beta=0.2)
    loss.sum().backward()

    expected = log(1 + exp(-0.2)) + 0.5 * log(1 + exp(0.2)) + 0.5 * log(1 + exp(-0.1))
    assert loss.item() == pytest.approx(expected)
    rising = 0.2 / (1 + exp(0.2)) - 0.5 * 0.2 / (1 + exp(-0.2))
    assert pairs.chosen.policy.grad.item() == pytest.approx(-rising, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.5 * 0.2 / (1 + exp(0.1)), abs=1e-6)


def test_unnormalized_its_minimizer_is_twice_the_share_of_chosen_ones():
    """Both places of a pair are drawn alike, so the share is the win probability."""
    problem = cyclic_problem(num_completions=5, seed=0)

    def slope(factor):
        log_ratio = (factor * win_probability(problem)).log() / 0.5
        policy = (problem.reference + log_ratio).requires_grad_()
        population_loss(nca_loss, problem, beta=0.5)(policy).backward()
        return policy.grad.norm().item()

    assert slope(2.0) < 1e-12
    assert slope(1.9) > 1e-3
