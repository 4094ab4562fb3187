import pytest

from veritune.objectives.paired.ipo_mean import ipo_mean_loss


def test_ipo_mean_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = ipo_mean_loss(pairs, tau=0.1)
    loss.sum().backward()

    distance = 1.0 / 10 + 0.5 / 12 - 5
    assert loss.item() == pytest.approx(distance**2)
    assert pairs.chosen.policy.grad.item() == pytest.approx(2 * distance / 10, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(-2 * distance / 12, abs=1e-6)
