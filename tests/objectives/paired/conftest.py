"""Two completions that are compared, and completions of several lengths."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from veritune.laboratory.problems import independent_pairs
from veritune.logprobs import CompletionLogProbs, PairedLogProbs
from veritune.objectives.optimum import FiniteProblem


@pytest.fixture
def one_comparison() -> Callable[[float], FiniteProblem]:
    def make(win_probability: float) -> FiniteProblem:
        reference = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
        return FiniteProblem(
            reference=reference,
            preferences=torch.tensor(
                [[0.5, win_probability], [1 - win_probability, 0.5]], dtype=torch.float64
            ),
            pair_law=independent_pairs(reference),
        )

    return make


@pytest.fixture
def with_lengths() -> Callable[..., Callable[..., Tensor]]:
    """A loss on the pairs of a finite problem, whose completions have one token, given lengths."""

    def make(loss: Callable[..., Tensor], length: Tensor) -> Callable[..., Tensor]:
        chosen, rejected = torch.cartesian_prod(length, length).unbind(dim=1)

        def of_lengths(completions: CompletionLogProbs, length: Tensor) -> CompletionLogProbs:
            return dataclasses.replace(completions, length=length)

        def loss_with_lengths(pairs: PairedLogProbs, **hyperparameters: float) -> Tensor:
            return loss(
                dataclasses.replace(
                    pairs,
                    chosen=of_lengths(pairs.chosen, chosen),
                    rejected=of_lengths(pairs.rejected, rejected),
                ),
                **hyperparameters,
            )

        return loss_with_lengths

    return make
