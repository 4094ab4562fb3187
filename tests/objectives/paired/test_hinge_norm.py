import pytest

from veritune.objectives.paired.hinge_norm import hinge_norm_loss


def test_hinge_norm_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = hinge_norm_loss(pairs, gamma=0.05)
    loss.sum().backward()

    assert loss.item() == pytest.approx(1 - 0.05 * 1.5)
    assert loss.item() == pytest.approx(0.925)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.05, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.05, abs=1e-6)


def test_beyond_its_margin_a_pair_has_no_force(pairs):
    loss = hinge_norm_loss(pairs, gamma=0.8)
    loss.sum().backward()

    assert loss.item() == 0
    assert pairs.chosen.policy.grad.item() == pytest.approx(0.0, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.0, abs=1e-6)
