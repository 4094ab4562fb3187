import pytest

from veritune.objectives.paired.chosen_nll_mean import chosen_nll_mean_loss


def test_chosen_nll_mean_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = chosen_nll_mean_loss(pairs)
    loss.sum().backward()

    assert loss.item() == pytest.approx(12.0 / 10)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-1 / 10)
    assert pairs.rejected.policy.grad is None
