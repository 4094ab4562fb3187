from math import exp, log

import pytest
import torch

from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.robust_dpo import robust_dpo_loss


def test_robust_dpo_loss_mixes_both_labels(pairs):
    loss = robust_dpo_loss(pairs, beta=0.1, epsilon=0.2)
    loss.sum().backward()

    right = 1 / (1 + exp(-0.15))
    assert loss.item() == pytest.approx(-0.8 * log(right) - 0.2 * log(1 - right))
    assert pairs.chosen.policy.grad.item() == pytest.approx(0.1 * (right - 0.8))
    assert pairs.rejected.policy.grad.item() == pytest.approx(-0.1 * (right - 0.8))


def test_robust_dpo_without_noise_is_dpo(pairs):
    assert torch.equal(robust_dpo_loss(pairs, beta=0.3, epsilon=0), dpo_loss(pairs, beta=0.3))


def test_robust_dpo_margin_of_one_comparison_is_the_logit_of_the_noisy_win_probability(
    one_comparison,
):
    problem = one_comparison(win_probability=0.9)

    found = minimize(
        population_loss(robust_dpo_loss, problem, beta=0.5, epsilon=0.2), problem.reference
    )

    noisy = 0.9 * 0.8 + 0.1 * 0.2
    margin = 0.5 * margin_of(problem, found.policy)
    assert margin == pytest.approx(log(noisy / (1 - noisy)))
    assert abs(margin - log(0.9 / 0.1)) > 1


def margin_of(problem: FiniteProblem, policy: torch.Tensor) -> float:
    log_ratio = policy - problem.reference
    return float(log_ratio[0] - log_ratio[1])
