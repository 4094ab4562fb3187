import dataclasses
from itertools import combinations
from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.logprobs import CompletionLogProbs, ScoredLogProbs
from veritune.objectives.scored.dpo_rw import dpo_rw_loss
from veritune.objectives.scored.preference_distillation import (
    preference_distillation_loss,
    preference_distillation_optimum,
)


def sigmoid(x):
    return 1 / (1 + exp(-x))


def test_preference_distillation_loss_and_its_derivatives_are_the_known_numbers(groups):
    loss = preference_distillation_loss(groups, gamma=0.1)
    loss.sum().backward()

    label, belief = sigmoid(1.2 + 0.3), sigmoid(0.1 * (-12 + 15))
    assert loss.item() == pytest.approx(-label * log(belief) - (1 - label) * log(1 - belief))
    assert loss.item() == pytest.approx(0.609083, abs=5e-7)
    chosen, rejected = groups.completions.policy.grad[0].tolist()
    assert chosen == pytest.approx(0.1 * (belief - label))
    assert chosen == pytest.approx(-0.024313, abs=1e-6)
    assert rejected == pytest.approx(0.024313, abs=1e-6)


@pytest.mark.parametrize("num_completions", [3, 4])
def test_preference_distillation_loss_is_the_mean_over_the_pairs_of_a_group(
    group_of, num_completions
):
    log_ratios = [0.4, -1.0, 2.1, 0.1][:num_completions]
    scores = [1.0, 2.0, -1.0, 0.3][:num_completions]

    loss = preference_distillation_loss(group_of(log_ratios, scores), gamma=0.7)

    terms = []
    for i, j in combinations(range(num_completions), 2):
        label = sigmoid(scores[i] - scores[j])
        belief = sigmoid(0.7 * (log_ratios[i] - log_ratios[j]))
        terms.append(-label * log(belief) - (1 - label) * log(1 - belief))
    assert loss.item() == pytest.approx(sum(terms) / len(terms))


def test_preference_distillation_loss_is_exact_where_both_sides_are_sure():
    """In float32, and where 1 - sigmoid would be rounded to zero."""

    def loss_of(margin, log_odds):
        policy = torch.tensor([[margin, 0.0]])
        groups = _groups(policy, torch.tensor([[log_odds, 0.0]]))
        return preference_distillation_loss(groups, gamma=1.0).item()

    # The term of the unlikely order: its label, exp(-30), times the margin.
    assert loss_of(1e4, 30.0) == pytest.approx(exp(-30) * 1e4, rel=1e-5)
    assert loss_of(-1e4, -30.0) == pytest.approx(exp(-30) * 1e4, rel=1e-5)
    assert loss_of(1e4, -30.0) == pytest.approx(1e4)
    assert loss_of(40.0, 1e4) == pytest.approx(exp(-40), rel=1e-5)


def _groups(policy, scores):
    length = torch.ones_like(policy, dtype=torch.int64)
    present = torch.ones_like(policy, dtype=torch.bool)
    return ScoredLogProbs(CompletionLogProbs(policy, length), scores, present)


@pytest.mark.parametrize("group_size", [2, 3])
def test_preference_distillation_minimizer_is_the_law_behind_the_scores(group_size):
    problem = bradley_terry_problem(num_completions=5, seed=0)
    loss = population_loss(preference_distillation_loss, problem, group_size=group_size, gamma=0.6)

    found = minimize(loss, problem.reference)

    assert found.gradient_norm < 1e-9
    assert found.smallest_curvature > 0
    optimum = preference_distillation_optimum(problem, gamma=0.6)
    assert total_variation(found.policy, optimum) < 1e-6
    assert total_variation(found.policy, preference_distillation_optimum(problem, gamma=0.8)) > 1e-2


def test_preference_distillation_minimizer_does_not_depend_on_the_law_of_the_completions():
    """`dpo_rw`, which has a reference, follows the law that the groups are drawn from."""
    problem = bradley_terry_problem(num_completions=5, seed=0)
    uniform = dataclasses.replace(problem, reference=torch.full((5,), 0.2).double().log())

    def minimizer(loss, problem, **hyperparameters):
        found = minimize(population_loss(loss, problem, **hyperparameters), problem.reference)
        assert found.gradient_norm < 1e-9
        return found.policy

    distilled = [
        minimizer(preference_distillation_loss, data, gamma=0.6) for data in (problem, uniform)
    ]
    tilted = [minimizer(dpo_rw_loss, data, beta_pi=1.0, beta_r=1.0) for data in (problem, uniform)]

    assert total_variation(*distilled) < 1e-6
    assert total_variation(*tilted) > 1e-2
