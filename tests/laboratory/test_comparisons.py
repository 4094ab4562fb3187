from math import exp, log

import pytest
import torch

from veritune.laboratory.comparisons import comparison_losses, pair_forces, pairs_of
from veritune.objectives.paired.bco_pair import bco_pair_loss
from veritune.objectives.paired.dpo import dpo_loss

CHOSEN = torch.tensor([1.0, -2.0], dtype=torch.float64)
REJECTED = torch.tensor([-0.5, 3.0], dtype=torch.float64)


def test_pairs_have_the_log_ratios_that_were_given():
    pairs = pairs_of(CHOSEN, REJECTED, mean_log_ratio=0.25)

    assert torch.equal(pairs.chosen.log_ratio, CHOSEN)
    assert torch.equal(pairs.rejected.log_ratio, REJECTED)
    assert pairs.mean_log_ratio == 0.25
    assert bco_pair_loss(pairs, beta=0.1)[0].item() == pytest.approx(
        log(1 + exp(-0.075)) + log(1 + exp(-0.075))
    )


def test_the_forces_of_dpo_on_both_sides_are_its_derivatives_longhand():
    forces = pair_forces(dpo_loss, CHOSEN, REJECTED, beta=0.1)

    push = [0.1 / (1 + exp(0.15)), 0.1 / (1 + exp(-0.5))]
    assert forces[0].tolist() == pytest.approx([-value for value in push])
    assert forces[1].tolist() == pytest.approx(push)


def test_a_comparison_costs_what_winning_and_losing_cost_by_how_often_they_happen():
    difference = torch.tensor([1.5], dtype=torch.float64)
    wins = torch.tensor([0.8], dtype=torch.float64)

    expected = 0.8 * log(1 + exp(-0.15)) + 0.2 * log(1 + exp(0.15))
    assert comparison_losses(dpo_loss, difference, wins, beta=0.1).item() == pytest.approx(expected)
