import dataclasses
from math import exp, log

import pytest
import torch

from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.sampled.ppo import ppo_loss


def test_ppo_loss_and_its_derivatives_are_those_of_the_formula(samples):
    loss = ppo_loss(samples, epsilon=0.2)
    loss.sum().backward()

    gains = exp(0.1) * 0.8, exp(0.1) * -0.4, exp(-0.1) * -0.6
    assert loss.item() == pytest.approx(-sum(gains))
    slopes = samples.policy.grad[0].flatten().tolist()
    assert slopes == pytest.approx([-gains[0], -gains[1], -gains[2], 0.0])


def test_a_token_that_has_moved_far_enough_has_no_gradient(samples):
    moved = (samples.behavior + log(1.3)).requires_grad_()

    ppo_loss(dataclasses.replace(samples, policy=moved), epsilon=0.2).sum().backward()

    # Advantages 0.8, -0.4 and -0.6: only the first has gained what it may.
    assert moved.grad[0].flatten().tolist() == pytest.approx([0.0, 1.3 * 0.4, 1.3 * 0.6, 0.0])


def test_its_gradient_on_fresh_samples_is_the_policy_gradient_of_the_advantage(
    fresh_gradient, rlhf_gradient
):
    problem = bradley_terry_problem(num_completions=4, seed=0)
    at = bradley_terry_problem(num_completions=4, seed=1).reference

    found = fresh_gradient(ppo_loss, problem, at, group_size=1)

    assert torch.allclose(found, rlhf_gradient(problem, at, 0.0), atol=1e-12)
