import dataclasses
from math import exp

import pytest
import torch

from veritune.objectives.unpaired.kto import kto_loss


def test_kto_loss_and_its_derivatives_are_the_known_numbers(labels):
    mean = kto_loss(labels, beta=0.1).mean()
    mean.backward()

    desirable = 1 / (1 + exp(-0.1))
    undesirable = 1 / (1 + exp(-0.1 * 0.5))
    assert mean.item() == pytest.approx(((1 - desirable) + (1 - undesirable)) / 2)
    assert mean.item() == pytest.approx(0.481262, abs=5e-7)
    d_chosen, d_rejected = labels.completion.policy.grad.tolist()
    assert d_chosen == pytest.approx(-0.1 * desirable * (1 - desirable) / 2)
    assert d_chosen == pytest.approx(-0.012469, abs=1e-6)
    assert d_rejected == pytest.approx(0.1 * undesirable * (1 - undesirable) / 2)
    assert d_rejected == pytest.approx(0.012492, abs=1e-6)


def test_kto_counts_gains_from_the_mismatched_log_ratio(labels):
    shifted = dataclasses.replace(
        labels, mismatched_log_ratio=torch.tensor(0.8, dtype=torch.float64)
    )

    desirable, undesirable = kto_loss(shifted, beta=0.1).tolist()

    assert desirable == pytest.approx(1 - 1 / (1 + exp(-0.1 * (1.0 - 0.8))))
    assert undesirable == pytest.approx(1 - 1 / (1 + exp(-0.1 * (0.8 - -0.5))))


def test_kto_takes_a_negative_mismatched_log_ratio_as_zero(labels):
    negative = dataclasses.replace(
        labels, mismatched_log_ratio=torch.tensor(-3.0, dtype=torch.float64)
    )

    assert torch.equal(kto_loss(negative), kto_loss(labels))


def test_kto_sends_no_gradient_through_the_mismatched_log_ratio(labels):
    mismatched = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    kto_loss(dataclasses.replace(labels, mismatched_log_ratio=mismatched)).sum().backward()

    assert mismatched.grad is None


def test_kto_weights_each_label_by_its_own_lambda(labels):
    plain = kto_loss(labels)

    weighted = kto_loss(labels, lambda_desirable=2.0, lambda_undesirable=3.0)

    assert torch.allclose(weighted, plain * torch.tensor([2.0, 3.0], dtype=torch.float64))
