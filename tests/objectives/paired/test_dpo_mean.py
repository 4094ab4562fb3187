import dataclasses
import math

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.lengths import with_lengths
from veritune.laboratory.minimize import is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.logprobs import PairedLogProbs
from veritune.objectives.optimum import tilted_reference
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.dpo_mean import dpo_mean_loss


def test_dpo_mean_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = dpo_mean_loss(pairs, beta=5.0)
    loss.sum().backward()

    margin = 5 * (1.0 / 10 + 0.5 / 12)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)))
    force = 5 / (1 + math.exp(margin))
    assert pairs.chosen.policy.grad.item() == pytest.approx(-force / 10)
    assert pairs.rejected.policy.grad.item() == pytest.approx(force / 12)


def test_its_minimizer_tilts_the_reference_by_length_times_reward():
    """The normalizer is inside the exponent, where the length multiplies it."""
    problem = bradley_terry_problem(num_completions=4, seed=2)
    length = torch.tensor([1, 2, 3, 5])
    loss = with_lengths(dpo_mean_loss, length)

    found = minimize(population_loss(loss, problem, beta=2.0), problem.reference)

    low, high = -10.0, 10.0
    for _ in range(100):
        shift = (low + high) / 2
        total = torch.logsumexp(problem.reference + length * (problem.reward / 2 + shift), dim=0)
        low, high = (shift, high) if total < 0 else (low, shift)
    claimed = problem.reference + length * (problem.reward / 2 + low)
    assert is_certified(found)
    assert total_variation(found.policy, claimed) < 1e-6
    plain = tilted_reference(problem.reference, length * problem.reward / 2)
    assert total_variation(found.policy, plain) > 1e-2


def test_at_one_token_each_it_is_dpo(pairs):
    one = torch.tensor([1])
    pairs = PairedLogProbs(
        dataclasses.replace(pairs.chosen, length=one),
        dataclasses.replace(pairs.rejected, length=one),
    )

    assert torch.equal(dpo_mean_loss(pairs, beta=0.2), dpo_loss(pairs, beta=0.2))
