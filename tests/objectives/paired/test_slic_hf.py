import pytest

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
