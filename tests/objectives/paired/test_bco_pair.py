from math import exp, log

import pytest
import torch

from veritune.logprobs import PairedLogProbs
from veritune.objectives.paired.bco_pair import bco_pair_loss
from veritune.objectives.paired.dpo import dpo_loss


def test_bco_pair_loss_and_its_derivatives_are_the_known_numbers(pairs):
    """The mean log-ratio of earlier steps is 0.25, so delta is 0.025."""
    loss = bco_pair_loss(pairs, beta=0.1)
    loss.sum().backward()

    expected = log(1 + exp(-(0.1 - 0.025))) + log(1 + exp(-0.05 - 0.025))
    assert loss.item() == pytest.approx(expected)
    assert loss.item() == pytest.approx(1.312700, abs=1e-6)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.048126, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.048126, abs=1e-6)


@pytest.mark.parametrize("mean", [-30.0, -1.0, 0.0, 0.7, 30.0])
def test_it_is_above_the_loss_of_dpo_whatever_the_baseline(pairs, mean):
    shifted = PairedLogProbs(pairs.chosen, pairs.rejected, torch.tensor(mean).double())

    assert bco_pair_loss(shifted, beta=0.1).item() > dpo_loss(pairs, beta=0.1).item()


@pytest.mark.parametrize("mean", [-30.0, 0.7, 30.0])
def test_what_it_exceeds_dpo_by_is_known(pairs, mean):
    """With a and b the rewards, (1 + e^(delta - a)) (1 + e^(b - delta)) has 1 + e^(b - a) in it."""
    shifted = PairedLogProbs(pairs.chosen, pairs.rejected, torch.tensor(mean).double())

    excess = bco_pair_loss(shifted, beta=0.1).item() - dpo_loss(pairs, beta=0.1).item()

    delta = 0.1 * mean
    more = exp(delta - 0.1) + exp(-0.05 - delta)
    assert excess == pytest.approx(log(1 + more / (1 + exp(-0.15))))


def test_no_gradient_goes_through_the_mean_log_ratio(pairs):
    mean = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)

    bco_pair_loss(PairedLogProbs(pairs.chosen, pairs.rejected, mean)).sum().backward()

    assert mean.grad is None
