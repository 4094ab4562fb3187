import math

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.lengths import with_lengths
from veritune.laboratory.minimize import is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.optimum import tilted_reference
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.length_regularized_dpo import length_regularized_dpo_loss


def test_the_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = length_regularized_dpo_loss(pairs, beta=0.5, alpha=0.1)
    loss.sum().backward()

    margin = 0.5 * (1.0 + 0.5) + 0.1 * (10 - 12)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)))
    force = 0.5 / (1 + math.exp(margin))
    assert pairs.chosen.policy.grad.item() == pytest.approx(-force)
    assert pairs.rejected.policy.grad.item() == pytest.approx(force)


def test_its_minimizer_tilts_the_reference_by_the_reward_less_the_price_of_its_tokens():
    problem = bradley_terry_problem(num_completions=4, seed=3)
    length = torch.tensor([1, 2, 3, 5])
    loss = with_lengths(length_regularized_dpo_loss, length)

    found = minimize(population_loss(loss, problem, beta=0.5, alpha=0.3), problem.reference)

    claimed = tilted_reference(problem.reference, (problem.reward - 0.3 * length) / 0.5)
    dearer = tilted_reference(problem.reference, (problem.reward + 0.3 * length) / 0.5)
    assert is_certified(found)
    assert total_variation(found.policy, claimed) < 1e-6
    assert total_variation(found.policy, dearer) > 1e-2


def test_without_a_price_it_is_dpo(pairs):
    free = length_regularized_dpo_loss(pairs, beta=0.2, alpha=0.0)

    assert torch.allclose(free, dpo_loss(pairs, beta=0.2))
