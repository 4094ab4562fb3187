from math import exp

import pytest

from veritune.laboratory.distances import kl
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.sampled.reverse_kl import reverse_kl_loss, reverse_kl_optimum
from veritune.objectives.sampled.reverse_kl_regularized import reverse_kl_regularized_loss


def test_reverse_kl_regularized_loss_is_that_of_the_formula(samples):
    loss = reverse_kl_regularized_loss(samples, gamma=0.5, kl_weight=0.3)

    # Log-ratios to the reference: policy 1 and -0.5, behavior 0.8 and -0.4.
    cost = (-12.0 - 1.2 / 0.5 + 0.3 * 1.0, -15.0 + 0.3 / 0.5 - 0.3 * 0.5)
    baseline = (-14.9 + 0.3 / 0.5 - 0.3 * 0.4, -12.2 - 1.2 / 0.5 + 0.3 * 0.8)
    first, second = exp(0.2) * (cost[0] - baseline[0]), exp(-0.1) * (cost[1] - baseline[1])
    assert loss.item() == pytest.approx((first + second) / 2)


def test_weight_zero_is_reverse_kl(samples):
    loss = reverse_kl_regularized_loss(samples, gamma=0.5, kl_weight=0.0)

    assert loss.item() == pytest.approx(reverse_kl_loss(samples, gamma=0.5).item())


def test_its_expectation_is_the_sum_of_both_divergences_of_the_policy():
    problem = bradley_terry_problem(num_completions=4, seed=0)
    target = reverse_kl_optimum(problem, gamma=0.7)
    first, second = (bradley_terry_problem(num_completions=4, seed=s).reference for s in (1, 2))
    loss = population_loss(reverse_kl_regularized_loss, problem, gamma=0.7, kl_weight=0.4)

    expected = [kl(p, target) + 0.4 * kl(p, problem.reference) for p in (first, second)]

    assert float(loss(first) - loss(second)) == pytest.approx(expected[0] - expected[1])
