from math import exp

import pytest
import torch

from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.sampled.dr_grpo import dr_grpo_loss


def test_dr_grpo_loss_is_that_of_the_formula(samples):
    loss = dr_grpo_loss(samples, epsilon=0.2)

    # Advantages 0.75 and -0.75; the first completion has two tokens.
    assert loss.item() == pytest.approx(-(2 * exp(0.1) * 0.75 - exp(-0.1) * 0.75) / 2)


@pytest.mark.parametrize("group_size", [2, 3])
def test_its_gradient_on_fresh_samples_is_the_policy_gradient_times_all_but_one_in_k(
    fresh_gradient, rlhf_gradient, group_size
):
    problem = bradley_terry_problem(num_completions=4, seed=0)
    at = bradley_terry_problem(num_completions=4, seed=1).reference

    found = fresh_gradient(dr_grpo_loss, problem, at, group_size=group_size)

    truth = rlhf_gradient(problem, at, 0.0)
    assert torch.allclose(found, (group_size - 1) / group_size * truth, atol=1e-12)
    assert not torch.allclose(found, truth, atol=1e-3)
