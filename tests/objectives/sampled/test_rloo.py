from math import exp

import pytest
import torch

from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.sampled.rloo import rloo_loss, rloo_optimum


def test_rloo_loss_and_its_derivatives_are_those_of_the_formula(samples):
    loss = rloo_loss(samples, beta=0.1)
    loss.sum().backward()

    first, second = 1.2 - 0.1 * 0.8, -0.3 + 0.1 * 0.4
    gains = exp(0.2) * (first - second), exp(-0.1) * (second - first)
    assert loss.item() == pytest.approx(-(gains[0] + gains[1]) / 2)
    slopes = samples.policy.grad[0]
    assert slopes[0].tolist() == pytest.approx([-gains[0] / 2] * 2)
    assert slopes[1].tolist() == pytest.approx([-gains[1] / 2, 0.0])


@pytest.mark.parametrize("group_size", [1, 2, 3])
def test_its_gradient_on_fresh_samples_is_that_of_rlhf(fresh_gradient, rlhf_gradient, group_size):
    problem = bradley_terry_problem(num_completions=4, seed=0)
    at = bradley_terry_problem(num_completions=4, seed=1).reference

    found = fresh_gradient(rloo_loss, problem, at, group_size=group_size, beta=0.3)

    assert torch.allclose(found, rlhf_gradient(problem, at, 0.3), atol=1e-12)
    assert not torch.allclose(found, rlhf_gradient(problem, at, 0.4), atol=1e-3)


def test_the_gradient_on_fresh_samples_vanishes_at_the_optimum_only(fresh_gradient):
    problem = bradley_terry_problem(num_completions=4, seed=0)

    at_optimum = fresh_gradient(rloo_loss, problem, rloo_optimum(problem, beta=0.3), beta=0.3)
    elsewhere = fresh_gradient(rloo_loss, problem, rloo_optimum(problem, beta=0.4), beta=0.3)

    assert at_optimum.norm() < 1e-12
    assert elsewhere.norm() > 1e-2
