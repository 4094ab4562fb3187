import dataclasses

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.lengths import with_lengths
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import cyclic_problem
from veritune.logprobs import PairedLogProbs
from veritune.objectives.optimum import tilted_reference, win_probability
from veritune.objectives.paired.ipo import ipo_loss
from veritune.objectives.paired.ipo_mean import ipo_mean_loss


def test_ipo_mean_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = ipo_mean_loss(pairs, tau=0.1)
    loss.sum().backward()

    distance = 1.0 / 10 + 0.5 / 12 - 5
    assert loss.item() == pytest.approx(distance**2)
    assert pairs.chosen.policy.grad.item() == pytest.approx(2 * distance / 10, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(-2 * distance / 12, abs=1e-6)


def test_its_minimizer_tilts_the_reference_by_length_times_win_probability():
    """The normalizer is inside the exponent, where the length multiplies it."""
    problem = cyclic_problem(num_completions=4, seed=2)
    length = torch.tensor([1, 2, 3, 5])
    loss = with_lengths(ipo_mean_loss, length)

    found = minimize(population_loss(loss, problem, tau=0.5), problem.reference)

    per_token = win_probability(problem) / 0.5
    low, high = -10.0, 10.0
    for _ in range(100):
        shift = (low + high) / 2
        total = torch.logsumexp(problem.reference + length * (per_token + shift), dim=0)
        low, high = (shift, high) if total < 0 else (low, shift)
    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, problem.reference + length * (per_token + low)) < 1e-6
    plain = tilted_reference(problem.reference, length * per_token)
    assert total_variation(found.policy, plain) > 1e-2


def test_at_one_token_each_it_is_ipo(pairs):
    one = torch.tensor([1])
    pairs = PairedLogProbs(
        dataclasses.replace(pairs.chosen, length=one),
        dataclasses.replace(pairs.rejected, length=one),
    )

    assert torch.equal(ipo_mean_loss(pairs, tau=0.2), ipo_loss(pairs, tau=0.2))
