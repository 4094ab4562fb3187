"""Completions of several lengths, for a loss that reads them."""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from veritune.logprobs import CompletionLogProbs, PairedLogProbs


def with_lengths(
    loss: Callable[..., Tensor], length: Int[Tensor, " Y"]
) -> Callable[..., Float[Tensor, " B"]]:
    """The loss on all pairs of a finite problem whose completions are this long.

    The completions of a problem have one token each otherwise.

    Args:
        loss: A loss of the catalog on pairs, for `population_loss`.
        length: In tokens, one for each completion.
    """
    chosen, rejected = torch.cartesian_prod(length, length).unbind(dim=1)

    def loss_with_lengths(pairs: PairedLogProbs, **hyperparameters: float) -> Float[Tensor, " B"]:
        given = dataclasses.replace(
            pairs,
            chosen=_of_length(pairs.chosen, chosen),
            rejected=_of_length(pairs.rejected, rejected),
        )
        return loss(given, **hyperparameters)

    return loss_with_lengths


def _of_length(completions: CompletionLogProbs, length: Tensor) -> CompletionLogProbs:
    return dataclasses.replace(completions, length=length)
