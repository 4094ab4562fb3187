import dataclasses
from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.paired.dpo import dpo_loss, dpo_optimum
from veritune.objectives.paired.rdpo import rdpo_loss
from veritune.objectives.paired.robust_dpo import robust_dpo_loss


def test_rdpo_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = rdpo_loss(pairs, beta=0.1, epsilon=0.1)
    loss.sum().backward()

    right, wrong = log(1 + exp(-0.15)), log(1 + exp(0.15))
    assert loss.item() == pytest.approx((0.9 * right - 0.1 * wrong) / 0.8)
    slope = (-0.9 / (1 + exp(0.15)) - 0.1 / (1 + exp(-0.15))) / 0.8
    assert pairs.chosen.policy.grad.item() == pytest.approx(0.1 * slope, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(-0.1 * slope, abs=1e-6)


def test_on_flipped_labels_its_mean_is_the_loss_of_dpo_on_true_ones():
    """And that of cDPO is not: smoothing is biased."""
    true = bradley_terry_problem(num_completions=5, seed=0)
    flipped = dataclasses.replace(true, preferences=0.8 * true.preferences + 0.1)
    policy = bradley_terry_problem(num_completions=5, seed=1).reference

    unbiased = population_loss(rdpo_loss, flipped, beta=0.3, epsilon=0.1)
    truth = population_loss(dpo_loss, true, beta=0.3)
    smoothed = population_loss(robust_dpo_loss, flipped, beta=0.3, epsilon=0.1)

    assert unbiased(policy).item() == pytest.approx(truth(policy).item(), abs=1e-12)
    assert abs(smoothed(policy).item() - truth(policy).item()) > 1e-4
    found = minimize(unbiased, true.reference)
    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, dpo_optimum(true, beta=0.3)) < 1e-6


def test_on_labels_cleaner_than_epsilon_says_the_margin_grows_without_end(one_comparison):
    """Flips at a rate of 0.2 leave no preference above 0.8."""
    loss = population_loss(rdpo_loss, one_comparison(win_probability=0.9), beta=1.0, epsilon=0.2)

    def loss_at(margin):
        return loss(torch.log_softmax(torch.tensor([margin, 0.0]).double(), dim=0)).item()

    assert loss_at(0.0) > loss_at(10.0) > loss_at(100.0) > loss_at(1000.0)
