"""The expected gradient on fresh samples, exact."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from veritune.laboratory.population import population_loss
from veritune.objectives.optimum import FiniteProblem


@pytest.fixture
def fresh_gradient() -> Callable[..., Tensor]:
    """Gradient with respect to the policy's logits where policy and behavior are one law."""

    def gradient(
        loss: Callable[..., Tensor], problem: FiniteProblem, at: Tensor, **settings: float
    ) -> Tensor:
        logits = at.clone().requires_grad_()
        expected = population_loss(loss, problem, behavior=at, **settings)
        expected(torch.log_softmax(logits, dim=0)).backward()
        return logits.grad

    return gradient


@pytest.fixture
def rlhf_gradient() -> Callable[..., Tensor]:
    """Gradient of minus `E[reward] - beta * KL(policy || reference)` with respect to the logits."""

    def gradient(problem: FiniteProblem, at: Tensor, beta: float) -> Tensor:
        logits = at.clone().requires_grad_()
        policy = torch.log_softmax(logits, dim=0)
        gain = problem.reward - beta * (policy - problem.reference)
        (-(policy.exp() * gain).sum()).backward()
        return logits.grad

    return gradient
