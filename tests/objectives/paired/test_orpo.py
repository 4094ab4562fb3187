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


def test_a_certain_completion_still_has_a_force_that_takes_the_certainty_away():
    """In float32, where the mean log-probability is exactly zero."""
    certain = CompletionLogProbs(torch.tensor([0.0], requires_grad=True), torch.tensor([5]))
    other = CompletionLogProbs(torch.tensor([-7.0]), torch.tensor([5]))

    loss = orpo_loss(PairedLogProbs(chosen=other, rejected=certain), odds_weight=0.1)
    loss.sum().backward()

    assert certain.policy.grad.item() > 1


def test_beyond_its_tangent_point_the_log_odds_go_on_as_a_line():
    def loss_at(mean):
        certain = CompletionLogProbs(torch.tensor([mean]).double(), torch.tensor([1]))
        other = CompletionLogProbs(torch.tensor([-7.0]).double(), torch.tensor([1]))
        return orpo_loss(PairedLogProbs(other, certain), odds_weight=1.0).item() - 7.0

    # log odds(certain) - log odds(other), which is large: its softplus is itself.
    odds_at_tangent = -1e-6 - log(1 - exp(-1e-6)) + 7.0 + log(1 - exp(-7.0))
    assert loss_at(-1e-6) == pytest.approx(odds_at_tangent, abs=1e-8)
    assert loss_at(0.0) - loss_at(-1e-6) == pytest.approx(1.0, abs=1e-5)
