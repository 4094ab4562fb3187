import dataclasses
from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem, independent_pairs
from veritune.objectives.paired.pmle import pmle_loss, pmle_optimum


def test_pmle_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = pmle_loss(pairs, gamma=0.1)
    loss.sum().backward()

    right = 1 / (1 + exp(-0.1 * (-12 - -15)))
    assert loss.item() == pytest.approx(-log(right))
    assert loss.item() == pytest.approx(0.554355, abs=5e-7)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.1 * (1 - right))
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.042556, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.042556, abs=1e-6)


def test_pmle_minimizer_is_the_target_for_every_pair_law_and_reference():
    problem = bradley_terry_problem(num_completions=6, seed=3)
    uniform = torch.full_like(problem.reference, 1 / 6).log()
    other = dataclasses.replace(problem, reference=uniform, pair_law=independent_pairs(uniform))

    for given in (problem, other):
        found = minimize(population_loss(pmle_loss, given, gamma=0.5), given.reference)

        assert found.gradient_norm < 1e-9
        assert total_variation(found.policy, pmle_optimum(given, gamma=0.5)) < 1e-6
        assert total_variation(found.policy, pmle_optimum(given, gamma=0.6)) > 1e-2


def test_pmle_target_raised_to_gamma_gives_the_preferences():
    problem = bradley_terry_problem(num_completions=4, seed=4)

    strength = pmle_optimum(problem, gamma=0.5).exp() ** 0.5

    assert torch.allclose(
        strength[:, None] / (strength[:, None] + strength[None, :]), problem.preferences
    )
