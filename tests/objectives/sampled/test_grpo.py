import dataclasses
from math import exp, sqrt

import pytest
import torch

from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.sampled.grpo import grpo_loss


def test_grpo_loss_is_that_of_the_formula(samples):
    loss = grpo_loss(samples, epsilon=0.2, beta=0.04)

    # Rewards 1.2 and -0.3: mean 0.45, deviation 0.75, so advantages 1 and -1.
    # Reference minus policy: -0.5 twice, and 0.5.
    down, up = exp(-0.5) + 0.5 - 1, exp(0.5) - 0.5 - 1
    first = exp(0.1) * 1 - 0.04 * down
    second = exp(-0.1) * -1 - 0.04 * up
    assert loss.item() == pytest.approx(-(first + second) / 2)


def test_equal_rewards_leave_only_the_penalty(samples):
    for reward in (0.0, 0.1, 1e4):
        equal = dataclasses.replace(samples, rewards=torch.full_like(samples.rewards, reward))
        assert grpo_loss(equal, beta=0.0).item() == 0


def test_the_scale_of_the_rewards_does_not_matter(samples):
    doubled = dataclasses.replace(samples, rewards=2 * samples.rewards + 5)

    assert grpo_loss(doubled).item() == pytest.approx(grpo_loss(samples).item())


def test_its_gradient_on_fresh_samples_is_no_multiple_of_the_policy_gradient(
    fresh_gradient, rlhf_gradient
):
    problem = bradley_terry_problem(num_completions=4, seed=0)
    at = bradley_terry_problem(num_completions=4, seed=1).reference

    found = fresh_gradient(grpo_loss, problem, at, group_size=3, beta=0.0)
    truth = rlhf_gradient(problem, at, 0.0)

    cosine = torch.nn.functional.cosine_similarity(found, truth, dim=0).item()
    assert 0.5 < cosine < 0.999


def test_with_two_rewards_the_deviation_divides_by_two(samples):
    rewards = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    loss = grpo_loss(dataclasses.replace(samples, rewards=rewards), beta=0.0)

    # Toolkits that divide by K - 1 = 1 have 1 / sqrt(2) here.
    assert loss.item() == pytest.approx(-(exp(0.1) - exp(-0.1)) / 2)
    assert loss.item() != pytest.approx(-(exp(0.1) - exp(-0.1)) / 2 / sqrt(2))
