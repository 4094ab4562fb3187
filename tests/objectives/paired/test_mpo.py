from math import exp

import pytest

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.paired.chosen_nll import chosen_nll_optimum
from veritune.objectives.paired.mpo import mpo_loss


def test_mpo_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = mpo_loss(pairs, reference_weight=0.1)
    loss.sum().backward()

    assert loss.item() == pytest.approx(-1 / (1 + exp(-3.0)) + 0.1 * 12)
    assert loss.item() == pytest.approx(0.247426, abs=1e-6)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.145177, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.045177, abs=1e-6)


def test_a_large_weight_gives_the_law_of_the_reference_text_and_a_small_one_does_not():
    problem = bradley_terry_problem(num_completions=5, seed=0)
    text = chosen_nll_optimum(problem)

    near, far = (
        minimize(population_loss(mpo_loss, problem, reference_weight=weight), problem.reference)
        for weight in (100.0, 0.3)
    )

    assert near.gradient_norm < 1e-9
    assert total_variation(near.policy, text) < 1e-3
    assert total_variation(far.policy, text) > 1e-2


def test_a_vanishing_weight_leaves_all_mass_on_the_most_preferred_completion():
    problem = bradley_terry_problem(num_completions=5, seed=0)

    found = minimize(population_loss(mpo_loss, problem, reference_weight=1e-4), problem.reference)

    assert int(found.policy.argmax()) == int(problem.reward.argmax())
    assert found.policy.exp().max().item() > 0.99
    assert problem.reference.exp()[problem.reward.argmax()].item() < 0.9
