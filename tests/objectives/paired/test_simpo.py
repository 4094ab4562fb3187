from math import exp, log

import pytest

from veritune.objectives.paired.simpo import simpo_loss


def test_simpo_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = simpo_loss(pairs, beta=2.0, gamma=0.5)
    loss.sum().backward()

    z = 2 * (-12 / 10 + 15 / 12) - 0.5
    assert loss.item() == pytest.approx(log(1 + exp(-z)))
    assert loss.item() == pytest.approx(0.913015, abs=1e-6)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.119738, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.099781, abs=1e-6)
