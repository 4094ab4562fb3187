import dataclasses
from math import exp, log

import pytest

from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.minor_dpo import minor_dpo_loss


def test_minor_dpo_loss_and_its_derivatives_are_the_known_numbers(pairs):
    """The rejected completion is below its reference: it has no force on it."""
    loss = minor_dpo_loss(pairs, beta=0.1)
    loss.sum().backward()

    assert loss.item() == pytest.approx(log(1 + exp(-0.1 * 1.0)))
    assert loss.item() == pytest.approx(0.644397, abs=1e-6)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.047502, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_above_the_reference_a_rejected_completion_counts_as_in_dpo(pairs):
    above = dataclasses.replace(pairs.rejected, reference=pairs.rejected.reference - 1)
    pairs = dataclasses.replace(pairs, rejected=above)

    loss = minor_dpo_loss(pairs, beta=0.1)
    loss.sum().backward()

    assert loss.item() == pytest.approx(dpo_loss(pairs, beta=0.1).item())
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.1 / (1 + exp(0.1 * 0.5)))


def test_at_the_reference_the_force_is_that_of_dpo(pairs):
    """The function has a kink there, and training starts on it."""
    rejected = dataclasses.replace(pairs.rejected, reference=pairs.rejected.policy.detach())
    pairs = dataclasses.replace(pairs, rejected=rejected)

    minor_dpo_loss(pairs, beta=0.1).sum().backward()

    assert pairs.rejected.policy.grad.item() == pytest.approx(0.1 / (1 + exp(0.1)))
