import dataclasses
from math import exp, log

import pytest

from veritune.objectives.unpaired.rdro import rdro_loss


def test_rdro_loss_and_its_derivatives_are_the_known_numbers(labels):
    """The derivative of the desirable one is positive: its ratio, e, is above 1 / 0.39."""
    mean = rdro_loss(labels, alpha=0.39).mean()
    mean.backward()

    desirable = 1.39 * log(1 + exp(1.0)) - 1.0
    undesirable = 0.61 * log(1 + exp(-0.5))
    assert mean.item() == pytest.approx(desirable + undesirable)
    assert mean.item() == pytest.approx(1.114621, abs=5e-7)
    d_chosen, d_rejected = labels.completion.policy.grad.tolist()
    assert d_chosen == pytest.approx(1.39 / (1 + exp(-1.0)) - 1)
    assert d_chosen == pytest.approx(0.016171, abs=1e-6)
    assert d_rejected == pytest.approx(0.61 / (1 + exp(0.5)))
    assert d_rejected == pytest.approx(0.230300, abs=1e-6)


def test_rdro_stops_pushing_a_desirable_completion_at_the_ceiling_of_the_ratio(labels):
    at_ceiling = (labels.completion.reference + log(1 / 0.39)).requires_grad_()
    completion = dataclasses.replace(labels.completion, policy=at_ceiling)

    rdro_loss(dataclasses.replace(labels, completion=completion), alpha=0.39).sum().backward()

    assert at_ceiling.grad[0].item() == pytest.approx(0, abs=1e-12)
    assert at_ceiling.grad[1].item() > 0.1
