"""Gradients of objectives on fresh samples of the policy, exact, and what they should be."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.population import population_loss
from veritune.objectives.optimum import FiniteProblem


def fresh_gradient(
    loss: Callable[..., Tensor],
    problem: FiniteProblem,
    policy: Float[Tensor, " Y"],
    *,
    group_size: int = 2,
    **hyperparameters: float,
) -> Float[Tensor, " Y"]:
    """Expected gradient of a loss with respect to the policy's logits, where the behavior is the
    policy itself.

    Args:
        loss: A loss of the catalog on samples.
        problem: Holds reference and reward.
        policy: Log-probabilities at which the gradient is taken.
        group_size: Completions in a group.
        hyperparameters: Of the loss.
    """
    logits = policy.detach().clone().requires_grad_()
    expected = population_loss(
        loss, problem, group_size=group_size, behavior=policy.detach(), **hyperparameters
    )
    (gradient,) = torch.autograd.grad(expected(torch.log_softmax(logits, dim=0)), logits)
    return gradient


def rlhf_gradient(
    problem: FiniteProblem, policy: Float[Tensor, " Y"], beta: float
) -> Float[Tensor, " Y"]:
    """Gradient with respect to the logits of `-(E[reward] - beta * KL(policy || reference))`."""
    assert problem.reward is not None, "a reward is maximized"
    logits = policy.detach().clone().requires_grad_()
    law = torch.log_softmax(logits, dim=0)
    gain = (law.exp() * (problem.reward - beta * (law - problem.reference))).sum()
    (gradient,) = torch.autograd.grad(-gain, logits)
    return gradient
