import dataclasses
from math import exp, log

import pytest

from veritune.objectives.paired.rpo import rpo_loss
from veritune.objectives.paired.rpo_mean import rpo_mean_loss


def test_rpo_mean_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = rpo_mean_loss(pairs, beta=0.1, sft_weight=0.2)
    loss.sum().backward()

    force = 0.1 / (1 + exp(0.1 * 1.5))
    assert loss.item() == pytest.approx(log(1 + exp(-0.1 * 1.5)) + 0.2 * 12 / 10)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-force - 0.2 / 10, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(force, abs=1e-6)


def test_for_completions_of_one_length_it_is_rpo_with_another_weight(pairs):
    alike = dataclasses.replace(pairs.chosen, length=pairs.rejected.length)

    loss = rpo_mean_loss(dataclasses.replace(pairs, chosen=alike), beta=0.1, sft_weight=0.2)

    assert loss.item() == pytest.approx(rpo_loss(pairs, beta=0.1, eta=0.2 / (12 * 0.1)).item())
