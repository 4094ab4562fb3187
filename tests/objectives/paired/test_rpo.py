from math import exp, log

import pytest

from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.rpo import rpo_loss


def test_rpo_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = rpo_loss(pairs, beta=0.1, eta=0.005)
    loss.sum().backward()

    assert loss.item() == pytest.approx(log(1 + exp(-0.1 * 1.5)) + 0.005 * 0.1 * 12)
    assert loss.item() == pytest.approx(0.626957, abs=1e-6)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.046757, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.046257, abs=1e-6)


def test_without_a_baseline_it_is_dpo(pairs):
    assert rpo_loss(pairs, beta=0.1, eta=0.0).item() == dpo_loss(pairs, beta=0.1).item()
