"""Robust DPO: DPO with smoothed labels, known as conservative DPO (cDPO)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import HalfFraction, Positive


def robust_dpo_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, epsilon: HalfFraction = 0.1
) -> Float[Tensor, " B"]:
    """Cross-entropy of the preferences when each label may be flipped.

    Also called conservative DPO, cDPO, or DPO with label smoothing. Unlike DPO it has a finite
    best margin: a pair that everyone agrees on is pushed to `log((1 - epsilon) / epsilon)` and no
    further. At epsilon = 0 it is DPO.

    It is not the estimator of Chowdhury et al. 2024 (arXiv:2403.00409), which other toolkits call
    robust: that one subtracts the flipped term and divides by `1 - 2 epsilon`, so that it is
    unbiased under flips, and it is unbounded below.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected))
        loss   = -(1 - epsilon) * log sigmoid(margin) - epsilon * log sigmoid(-margin)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta: Weight of the KL penalty. A small beta lets the optimum move far from the reference.
        epsilon: Share of pairs whose label is taken to be wrong. A larger one lowers the margin at
            which a pair stops being pushed.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO".
    """
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    return -(1 - epsilon) * logsigmoid(margin) - epsilon * logsigmoid(-margin)


def robust_dpo_initial_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, epsilon: HalfFraction = 0.1
) -> Float[Tensor, " B"]:
    """`log 2`: at margin zero both labels are equally likely."""
    return torch.full_like(pairs.chosen.policy, math.log(2))


CARD = Card(
    loss=robust_dpo_loss,
    data=PairedLogProbs,
    source="Mitchell 2023, A note on DPO with noisy preferences and relationship to IPO",
    title="conservative direct preference optimization (smoothed labels)",
    target=(
        "none claimed over many completions; a single comparison won with probability p ends at "
        "the margin logit(p (1 - epsilon) + (1 - p) epsilon)"
    ),
    elsewhere=(
        "label_smoothing=epsilon of the DPO of its authors, LLaMA-Factory and OpenRLHF; TRL "
        "0.29 and later do not read it with loss_type='sigmoid', and their loss_type='robust' "
        "is rdpo"
    ),
    initial_loss=robust_dpo_initial_loss,
    reward_scale="beta",
)
