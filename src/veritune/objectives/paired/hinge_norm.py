"""Hinge-norm: the hinge loss on log-ratios."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive


def hinge_norm_loss(pairs: PairedLogProbs, *, gamma: Positive = 0.05) -> Float[Tensor, " B"]:
    """Hinge on the log-ratio margin: SLiC with the reference subtracted.

    It is the support-vector machine where DPO is logistic regression, and some toolkits call it
    the hinge loss. A pair is pushed with a constant force until its margin is `1 / gamma` nats.

        loss = max(0, 1 - gamma * (log_ratio(chosen) - log_ratio(rejected)))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        gamma: Inverse of the margin at which a pair is left alone. A small one asks for larger
            margins.

    Returns:
        Loss of each pair, not reduced.

    Source:
        Liu et al. 2023, arXiv:2309.06657, the hinge-norm loss.
    """
    return (1 - gamma * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)).clamp(min=0)


def hinge_norm_initial_loss(
    pairs: PairedLogProbs, *, gamma: Positive = 0.05
) -> Float[Tensor, " B"]:
    """`1`: the margin is zero."""
    return torch.ones_like(pairs.chosen.policy)


CARD = Card(
    loss=hinge_norm_loss,
    data=PairedLogProbs,
    source="arXiv:2309.06657, hinge-norm",
    title="hinge loss on log-ratios",
    target=(
        "none claimed over many completions; a single comparison ends at the margin 1 / gamma in "
        "favor of whichever wins more often, however small the majority"
    ),
    elsewhere="loss_type='hinge', beta=gamma of TRL and Liger-Kernel",
    initial_loss=hinge_norm_initial_loss,
    reward_scale="gamma",
)
