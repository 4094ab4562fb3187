"""The one small example on which every objective's numbers are known.

Chosen (desirable) completion: policy -12, reference -13, so a log-ratio of 1; 10 tokens.
Rejected (undesirable) completion: policy -15, reference -14.5, so a log-ratio of -0.5; 12 tokens.
The mean log-ratio of earlier data is 0.25. As a scored group the two have scores 1.2 and -0.3.
As samples they have two tokens and one, and these scores as rewards.
"""

import pytest
import torch
from torch import Tensor

from veritune.logprobs import (
    CompletionLogProbs,
    PairedLogProbs,
    SampledLogProbs,
    ScoredLogProbs,
    UnpairedLogProbs,
)

POLICY = (-12.0, -15.0)
REFERENCE = (-13.0, -14.5)
LENGTH = (10, 12)
SCORES = (1.2, -0.3)


def _completions(policy: Tensor, reference: Tensor, length: Tensor) -> CompletionLogProbs:
    return CompletionLogProbs(policy.requires_grad_(), length, reference)


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def pairs() -> PairedLogProbs:
    chosen, rejected = (
        _completions(_double([POLICY[i]]), _double([REFERENCE[i]]), torch.tensor([LENGTH[i]]))
        for i in (0, 1)
    )
    return PairedLogProbs(chosen, rejected, mean_log_ratio=_double(0.25))


@pytest.fixture
def labels() -> UnpairedLogProbs:
    return UnpairedLogProbs(
        completion=_completions(_double(POLICY), _double(REFERENCE), torch.tensor(LENGTH)),
        desirable=torch.tensor([True, False]),
        num_desirable=1,
        num_undesirable=1,
        mismatched_log_ratio=_double(0.0),
        mean_log_ratio=_double(0.25),
    )


@pytest.fixture
def groups() -> ScoredLogProbs:
    return ScoredLogProbs(
        completions=_completions(_double([POLICY]), _double([REFERENCE]), torch.tensor([LENGTH])),
        scores=_double([SCORES]),
        present=torch.tensor([[True, True]]),
    )


@pytest.fixture
def samples() -> SampledLogProbs:
    """The first completion falls into tokens of -5 and -7, the second is a single token."""
    return SampledLogProbs(
        policy=_double([[[-5.0, -7.0], [-15.0, 0.0]]]).requires_grad_(),
        behavior=_double([[[-5.1, -7.1], [-14.9, 0.0]]]),
        bears_loss=torch.tensor([[[True, True], [True, False]]]),
        rewards=_double([SCORES]),
        reference=_double([[[-5.5, -7.5], [-14.5, 0.0]]]),
        advantages=_double([[[0.8, -0.4], [-0.6, 0.0]]]),
    )
