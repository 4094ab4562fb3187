import pytest

from veritune.objectives.paired.slic import slic_loss
from veritune.objectives.paired.slic_hf import slic_hf_loss


def test_slic_hf_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = slic_hf_loss(pairs, delta=4.0, sft_weight=0.1)
    loss.sum().backward()

    assert loss.item() == pytest.approx(4.0 + 12.0 - 15.0 + 0.1 * 12)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-1.1, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(1.0, abs=1e-6)


def test_beyond_its_margin_only_the_supervised_term_is_left(pairs):
    slic_hf_loss(pairs, delta=2.0, sft_weight=0.1).sum().backward()

    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.1, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_without_its_supervised_term_it_is_slic_in_other_units(pairs):
    """The margin delta is 1 / gamma, and the loss is larger by as much."""
    loss = slic_hf_loss(pairs, delta=20.0, sft_weight=0.0)

    assert loss.item() == pytest.approx(20.0 * slic_loss(pairs, gamma=0.05).item())
