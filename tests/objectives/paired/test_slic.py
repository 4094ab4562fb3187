import pytest

from veritune.objectives.paired.slic import slic_loss


def test_slic_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = slic_loss(pairs, gamma=0.05)
    loss.sum().backward()

    assert loss.item() == pytest.approx(1 - 0.05 * (-12.0 + 15.0))
    assert loss.item() == pytest.approx(0.85)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.05, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.05, abs=1e-6)


def test_beyond_its_margin_a_pair_has_no_force(pairs):
    loss = slic_loss(pairs, gamma=0.5)
    loss.sum().backward()

    assert loss.item() == 0
    assert pairs.chosen.policy.grad.item() == pytest.approx(0.0, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.0, abs=1e-6)
