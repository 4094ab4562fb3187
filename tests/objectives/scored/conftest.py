"""Groups of completions, and the one group in which a law is whole."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from veritune.logprobs import CompletionLogProbs, ScoredLogProbs


@pytest.fixture
def group_of() -> Callable[..., ScoredLogProbs]:
    """One group in float64 from log-ratios and scores; the reference is at -20 nats everywhere."""

    def make(log_ratios: list[float], scores: list[float]) -> ScoredLogProbs:
        reference = torch.full((1, len(log_ratios)), -20.0, dtype=torch.float64)
        policy = reference + torch.tensor([log_ratios], dtype=torch.float64)
        return ScoredLogProbs(
            CompletionLogProbs(
                policy.requires_grad_(), torch.full_like(policy, 5, dtype=torch.int64), reference
            ),
            torch.tensor([scores], dtype=torch.float64),
            torch.ones_like(policy, dtype=torch.bool),
        )

    return make


BEHAVIOR = (1, 3, 5, 9, 14)
"""How often each of five completions is among 32: the law that draws the group."""

REWARD = (1.3, -0.4, 0.8, 0.1, -0.9)


@pytest.fixture
def behavior() -> Tensor:
    """Log-probabilities of the law whose multiples of 1/32 make one whole group."""
    return (torch.tensor(BEHAVIOR, dtype=torch.float64) / 32).log()


@pytest.fixture
def reward() -> Tensor:
    """Score of each of the five completions."""
    return torch.tensor(REWARD, dtype=torch.float64)


@pytest.fixture
def whole_group(behavior: Tensor, reward: Tensor) -> Callable[[Tensor], ScoredLogProbs]:
    """Every completion as often as the law says, in one group: its mean is the expectation."""
    which = torch.repeat_interleave(torch.arange(len(BEHAVIOR)), torch.tensor(BEHAVIOR))[None]

    def make(policy: Tensor) -> ScoredLogProbs:
        return ScoredLogProbs(
            CompletionLogProbs(policy[which], torch.ones_like(which), behavior[which]),
            reward[which],
            torch.ones_like(which, dtype=torch.bool),
        )

    return make
