from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.scored.dpo_rw import dpo_rw_loss
from veritune.objectives.scored.infonca import (
    infonca_initial_loss,
    infonca_loss,
    infonca_optimum,
)


def softmax(values):
    return [exp(value) / sum(exp(other) for other in values) for value in values]


def test_infonca_loss_and_its_derivatives_are_those_of_the_formula(group_of):
    group = group_of([0.4, -1.0, 2.1], [1.0, 2.0, -1.0])

    loss = infonca_loss(group, alpha=2.0, beta=0.7)
    loss.sum().backward()

    share = softmax([0.5, 1.0, -0.5])
    belief = softmax([0.28, -0.7, 1.47])
    assert loss.item() == pytest.approx(
        -sum(p * log(q) for p, q in zip(share, belief, strict=True))
    )
    assert group.completions.policy.grad[0].tolist() == pytest.approx(
        [0.7 * (q - p) for p, q in zip(share, belief, strict=True)]
    )


def test_infonca_is_dpo_rw_with_alpha_for_the_scores_and_beta_for_the_policy(groups):
    loss = infonca_loss(groups, alpha=0.3, beta=0.8)

    assert torch.equal(loss, dpo_rw_loss(groups, beta_pi=0.8, beta_r=0.3))
    assert not torch.equal(loss, dpo_rw_loss(groups, beta_pi=0.3, beta_r=0.8))


def test_infonca_minimizer_tilts_the_reference_by_reward_over_both_temperatures():
    problem = bradley_terry_problem(num_completions=5, seed=0)

    found = minimize(population_loss(infonca_loss, problem, alpha=0.9, beta=0.7), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, infonca_optimum(problem, alpha=0.9, beta=0.7)) < 1e-6
    assert total_variation(found.policy, infonca_optimum(problem, alpha=0.9, beta=1.0)) > 1e-2


def test_infonca_initial_loss_is_the_logarithm_of_the_number_of_completions(group_of):
    assert infonca_initial_loss(group_of([0.0] * 3, [1.0, 2.0, 3.0])).item() == pytest.approx(
        log(3)
    )
