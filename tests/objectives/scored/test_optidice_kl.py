from math import exp

import pytest

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.optimum import tilted_reference
from veritune.objectives.scored.optidice_kl import optidice_kl_loss


def test_optidice_kl_loss_and_its_derivatives_are_those_of_the_formula(groups):
    loss = optidice_kl_loss(groups, alpha=0.5)
    loss.sum().backward()

    better = 1 / (1 + exp(-1.5 / 0.5))
    assert loss.item() == pytest.approx(better * 12.0 + (1 - better) * 15.0)
    # The weight of a completion over the number of completions is its softmax.
    assert groups.completions.policy.grad[0].tolist() == pytest.approx([-better, better - 1])


def test_optidice_kl_imitates_a_completion_that_is_alone(group_of):
    assert optidice_kl_loss(group_of([1.0], [7.0])).item() == pytest.approx(19.0)


def test_optidice_kl_minimizer_of_a_whole_group_is_the_tilted_law(whole_group, behavior, reward):
    """Lee et al. 2021 in one step, with f = x log x."""
    found = minimize(lambda p: optidice_kl_loss(whole_group(p), alpha=0.7).sum(), behavior)

    assert found.gradient_norm < 1e-9
    assert found.smallest_curvature > 0
    assert total_variation(found.policy, tilted_reference(behavior, reward / 0.7)) < 1e-9
    assert total_variation(found.policy, tilted_reference(behavior, reward / 0.9)) > 1e-2


def test_optidice_kl_minimizer_nears_the_tilted_reference_as_groups_grow():
    problem = bradley_terry_problem(num_completions=4, seed=0)
    target = tilted_reference(problem.reference, problem.reward)

    def distance(group_size):
        loss = population_loss(optidice_kl_loss, problem, group_size=group_size, alpha=1.0)
        found = minimize(loss, problem.reference)
        assert found.gradient_norm < 1e-9
        return total_variation(found.policy, target)

    distances = [distance(group_size) for group_size in (1, 2, 4, 6)]

    # A group of one is imitated as it is, so the reference is the minimizer.
    assert distances[0] == pytest.approx(total_variation(problem.reference, target))
    assert distances[1] < 0.7 * distances[0]
    assert distances[2] < 0.6 * distances[1]
    assert distances[3] < 0.8 * distances[2]
    # No group of this size gets there, which is why the card claims no optimum.
    assert distances[3] > 1e-2
