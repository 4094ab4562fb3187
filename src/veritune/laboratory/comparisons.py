"""Pairs given by their log-ratios: what a loss says of each, and how it pushes its two sides."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import CompletionLogProbs, PairedLogProbs


def pairs_of(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], *, mean_log_ratio: float = 0.0
) -> PairedLogProbs:
    """Pairs of completions of one token with these log-ratios.

    Args:
        chosen: Log-ratio of the chosen completions, in nats.
        rejected: Log-ratio of the rejected ones.
        mean_log_ratio: That of earlier steps, for a loss that reads it.
    """
    return PairedLogProbs(
        chosen=_completions(chosen),
        rejected=_completions(rejected),
        mean_log_ratio=chosen.new_tensor(mean_log_ratio),
    )


def pair_forces(
    loss: Callable[..., Tensor],
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    **hyperparameters: float,
) -> Float[Tensor, "2 B"]:
    """Derivatives of the loss of each pair by the log-ratio of its chosen and rejected side.

    Args:
        loss: A loss of the catalog on pairs.
        chosen: Log-ratio of the chosen completions, in nats.
        rejected: Log-ratio of the rejected ones.
        hyperparameters: Of the loss.

    Returns:
        By the chosen log-ratio in the first row, by the rejected in the second.
    """
    sides = [side.detach().clone().requires_grad_() for side in (chosen, rejected)]
    losses = loss(pairs_of(*sides), **hyperparameters)
    return torch.stack(torch.autograd.grad(losses.sum(), sides))


def comparison_losses(
    loss: Callable[..., Tensor],
    log_ratio: Float[Tensor, " B"],
    win_probability: Float[Tensor, " B"],
    **hyperparameters: float,
) -> Float[Tensor, " B"]:
    """The expected loss of two completions that are compared again and again.

    Args:
        loss: A loss of the catalog on pairs that reads the difference of the log-ratios only.
        log_ratio: That of the first completion minus that of the second, in nats.
        win_probability: How often the first is preferred.
        hyperparameters: Of the loss.
    """
    zero = torch.zeros_like(log_ratio)
    won = loss(pairs_of(log_ratio, zero), **hyperparameters)
    lost = loss(pairs_of(zero, log_ratio), **hyperparameters)
    return win_probability * won + (1 - win_probability) * lost


def _completions(log_ratio: Float[Tensor, " B"]) -> CompletionLogProbs:
    return CompletionLogProbs(
        policy=log_ratio,
        length=torch.ones(log_ratio.shape, dtype=torch.int64),
        reference=torch.zeros_like(log_ratio).detach(),
    )
