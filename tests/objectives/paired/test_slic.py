import pytest
import torch

from veritune.laboratory.population import population_loss
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


def test_one_comparison_ends_at_the_margin_however_small_the_majority(one_comparison):
    for win_probability in (0.51, 0.99):
        problem = one_comparison(win_probability)
        loss = population_loss(slic_loss, problem, gamma=0.5)

        def loss_at(margin, loss=loss, problem=problem):
            start = torch.zeros(2, dtype=torch.float64)
            return loss(torch.log_softmax(start + torch.tensor([margin, 0.0]).double(), 0)).item()

        # The margin 1 / gamma is 2 nats.
        assert loss_at(2.0) < min(loss_at(1.99), loss_at(2.01))
        assert loss_at(2.0) < loss_at(-2.0)
