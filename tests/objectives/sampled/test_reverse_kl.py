from math import exp

import pytest
import torch

from veritune.laboratory.distances import kl, total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.sampled.reverse_kl import reverse_kl_loss, reverse_kl_optimum


def test_reverse_kl_loss_and_its_derivatives_are_those_of_the_formula(samples):
    loss = reverse_kl_loss(samples, gamma=0.5)
    loss.sum().backward()

    # Baselines: the cost of the other completion under the behavior.
    first = exp(0.2) * ((-12.0 - 1.2 / 0.5) - (-14.9 + 0.3 / 0.5))
    second = exp(-0.1) * ((-15.0 + 0.3 / 0.5) - (-12.2 - 1.2 / 0.5))
    assert loss.item() == pytest.approx((first + second) / 2)
    slopes = samples.policy.grad[0]
    assert slopes[0].tolist() == pytest.approx([(first + exp(0.2)) / 2] * 2)
    assert slopes[1].tolist() == pytest.approx([(second + exp(-0.1)) / 2, 0.0])


@pytest.mark.parametrize("group_size", [1, 3])
def test_its_expectation_is_the_reverse_kl_up_to_a_constant_whatever_the_behavior(group_size):
    problem = bradley_terry_problem(num_completions=4, seed=0)
    target = reverse_kl_optimum(problem, gamma=0.7)
    first, second = (bradley_terry_problem(num_completions=4, seed=s).reference for s in (1, 2))

    for behavior in (problem.reference, first):
        loss = population_loss(
            reverse_kl_loss, problem, group_size=group_size, behavior=behavior, gamma=0.7
        )
        difference = float(loss(first) - loss(second))
        assert difference == pytest.approx(kl(first, target) - kl(second, target))
        assert difference != pytest.approx(kl(target, first) - kl(target, second), rel=1e-2)


def test_the_minimizer_ignores_the_reference():
    """RLHF has the reference tilted by the same reward instead."""
    problem = bradley_terry_problem(num_completions=5, seed=3)
    claimed = torch.log_softmax(problem.reward / 0.7, dim=0)

    found = minimize(population_loss(reverse_kl_loss, problem, gamma=0.7), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, claimed) < 1e-8
    tilted = torch.log_softmax(problem.reference + problem.reward / 0.7, dim=0)
    assert total_variation(found.policy, tilted) > 1e-2
