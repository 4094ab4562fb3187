import dataclasses
from math import exp, log

import pytest
import torch

from veritune.logprobs import CompletionLogProbs, PairedLogProbs
from veritune.objectives.paired.orpo import orpo_loss


def test_orpo_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = orpo_loss(pairs, odds_weight=0.1)
    loss.sum().backward()

    chosen, rejected = exp(-12 / 10), exp(-15 / 12)
    odds = chosen / (1 - chosen) / (rejected / (1 - rejected))
    assert loss.item() == pytest.approx(12 / 10 + 0.1 * log(1 + 1 / odds))
    assert loss.item() == pytest.approx(1.265837, abs=1e-6)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.106902, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.005633, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [0.0, -1e-12, -1e-7, -1e-3, -0.693, -0.694, -50.0])
def test_value_and_gradient_are_finite_for_probabilities_near_one(mean, dtype):
    policy = torch.tensor([5 * mean], dtype=dtype, requires_grad=True)
    completion = CompletionLogProbs(policy, torch.tensor([5]))
    other = dataclasses.replace(completion, policy=torch.tensor([-7.0], dtype=dtype))

    for pairs in (PairedLogProbs(completion, other), PairedLogProbs(other, completion)):
        loss = orpo_loss(pairs)
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
