import dataclasses
from math import exp, log

import pytest
import torch

from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.logprobs import PairedLogProbs
from veritune.objectives.paired.pmle import pmle_loss
from veritune.objectives.paired.simpo import simpo_loss


def test_simpo_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = simpo_loss(pairs, beta=2.0, gamma=0.5)
    loss.sum().backward()

    z = 2 * (-12 / 10 + 15 / 12) - 0.5
    assert loss.item() == pytest.approx(log(1 + exp(-z)))
    assert loss.item() == pytest.approx(0.913015, abs=1e-6)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.119738, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.099781, abs=1e-6)


def test_without_a_target_margin_and_at_one_token_each_it_is_pmle(pairs):
    one = torch.tensor([1])
    pairs = PairedLogProbs(
        dataclasses.replace(pairs.chosen, length=one),
        dataclasses.replace(pairs.rejected, length=one),
    )

    assert torch.equal(simpo_loss(pairs, beta=0.3, gamma=0.0), pmle_loss(pairs, gamma=0.3))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_a_target_margin_makes_it_no_estimator_of_a_reward(one_comparison, gamma):
    problem = one_comparison(win_probability=0.9)

    found = minimize(population_loss(simpo_loss, problem, beta=2.0, gamma=gamma), problem.reference)

    margin = 2.0 * float(found.policy[0] - found.policy[1])
    assert found.gradient_norm < 1e-9
    assert (abs(margin - log(0.9 / 0.1)) < 1e-6) == (gamma == 0)
