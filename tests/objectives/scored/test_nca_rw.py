from itertools import product
from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.optimum import tilted_reference
from veritune.objectives.scored.infonca import infonca_loss
from veritune.objectives.scored.nca_rw import nca_rw_initial_loss, nca_rw_loss
from veritune.objectives.scored.optidice_kl import optidice_kl_loss


def sigmoid(x):
    return 1 / (1 + exp(-x))


def softmax(values):
    return [exp(value) / sum(exp(other) for other in values) for value in values]


@pytest.mark.parametrize("num_completions", [1, 2, 3, 4])
def test_nca_rw_loss_and_its_derivatives_are_those_of_the_formula(group_of, num_completions):
    log_ratios = [0.4, -1.0, 2.1, 0.1][:num_completions]
    scores = [1.0, 2.0, -1.0, 0.3][:num_completions]
    group = group_of(log_ratios, scores)

    loss = nca_rw_loss(group, alpha=2.0, beta=0.7)
    loss.sum().backward()

    share = softmax([score / 2 for score in scores])
    rewards = [0.7 * g for g in log_ratios]
    expected = -sum(
        p * log(sigmoid(z)) + log(sigmoid(-z)) / num_completions
        for p, z in zip(share, rewards, strict=True)
    )
    assert loss.item() == pytest.approx(expected)
    assert group.completions.policy.grad[0].tolist() == pytest.approx(
        [
            0.7 * (sigmoid(z) / num_completions - p * sigmoid(-z))
            for p, z in zip(share, rewards, strict=True)
        ]
    )


def test_nca_rw_loss_of_a_certain_pair_is_that_of_the_pair_form(groups):
    """All weight on the better of two: -log s(c) - 0.5 log s(-c) - 0.5 log s(-r)."""
    loss = nca_rw_loss(groups, alpha=1e-3, beta=0.1)

    chosen, rejected = 0.1, -0.05
    assert loss.item() == pytest.approx(
        -log(sigmoid(chosen)) - 0.5 * log(sigmoid(-chosen)) - 0.5 * log(sigmoid(-rejected))
    )


def test_nca_rw_has_a_place_for_each_likelihood_where_infonca_has_only_differences(group_of):
    here, lower = (group_of([g, g - 1.0], [1.0, 0.0]) for g in (0.5, -20.0))

    assert infonca_loss(here).item() == pytest.approx(infonca_loss(lower).item())
    assert nca_rw_loss(lower).item() > nca_rw_loss(here).item() + 0.1


def test_nca_rw_initial_loss_is_that_of_two_coins_whatever_the_group(group_of):
    for num_completions in (1, 2, 4):
        group = group_of([0.0] * num_completions, list(range(num_completions)))
        assert nca_rw_initial_loss(group).item() == pytest.approx(2 * log(2))


def reference_times_expected_share(problem, group_size, alpha):
    """reference(y) * K * E[share of the first completion | it is y], over all other completions."""
    law = torch.zeros(problem.num_completions, dtype=torch.float64)
    for group in product(range(problem.num_completions), repeat=group_size):
        probability = float(problem.reference[list(group)].sum().exp())
        share = softmax([float(problem.reward[i]) / alpha for i in group])[0]
        law[group[0]] += probability * group_size * share
    return law.log()


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_nca_rw_minimizer_at_beta_one_is_the_reference_times_the_expected_share(group_size):
    problem = bradley_terry_problem(num_completions=4, seed=0)
    target = reference_times_expected_share(problem, group_size, alpha=0.8)
    loss = population_loss(nca_rw_loss, problem, group_size=group_size, alpha=0.8, beta=1.0)

    found = minimize(loss, problem.reference)

    assert found.gradient_norm < 1e-9
    assert found.smallest_curvature > 0
    assert float(target.logsumexp(dim=0)) == pytest.approx(0, abs=1e-12)
    assert total_variation(found.policy, target) < 1e-6
    # Small groups do not tell the whole of the reward.
    assert (
        total_variation(found.policy, tilted_reference(problem.reference, problem.reward / 0.8))
        > 0.02
    )


def test_nca_rw_minimizer_at_beta_one_is_that_of_imitation_weighted_by_the_share():
    problem = bradley_terry_problem(num_completions=4, seed=0)

    contrasted, imitated = (
        minimize(population_loss(loss, problem, **settings), problem.reference)
        for loss, settings in (
            (nca_rw_loss, {"alpha": 0.8, "beta": 1.0}),
            (optidice_kl_loss, {"alpha": 0.8}),
        )
    )

    assert contrasted.gradient_norm < 1e-9
    assert total_variation(contrasted.policy, imitated.policy) < 1e-6


def test_nca_rw_minimizer_at_a_small_beta_is_a_compromise():
    """The likelihoods that the loss asks for add up to more than one."""
    problem = bradley_terry_problem(num_completions=4, seed=0)
    share = reference_times_expected_share(problem, 2, alpha=0.8) - problem.reference
    asked = problem.reference + share / 0.3

    found = minimize(population_loss(nca_rw_loss, problem, alpha=0.8, beta=0.3), problem.reference)

    assert found.gradient_norm < 1e-9
    assert float(asked.exp().sum()) > 1.1
    assert total_variation(found.policy, torch.log_softmax(asked, dim=0)) > 1e-3
