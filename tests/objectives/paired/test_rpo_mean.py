from math import exp, log

import pytest

from veritune.objectives.paired.rpo_mean import rpo_mean_loss


def test_rpo_mean_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = rpo_mean_loss(pairs, beta=0.1, sft_weight=0.2)
    loss.sum().backward()

    force = 0.1 / (1 + exp(0.1 * 1.5))
    assert loss.item() == pytest.approx(log(1 + exp(-0.1 * 1.5)) + 0.2 * 12 / 10)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-force - 0.2 / 10, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(force, abs=1e-6)
