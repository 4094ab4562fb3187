"""EXO on pairs: efficient exact optimization, in the form of the paper."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import OpenHalfFraction, Positive


def exo_pref_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, epsilon: OpenHalfFraction = 1e-3
) -> Float[Tensor, " B"]:
    """Reverse KL from the policy's preference to a smoothed label.

    DPO is the forward KL of the same two distributions. Here the force on a pair vanishes at the
    margin `log((1 - epsilon) / epsilon)`, and also far on the wrong side. It is not a consistent
    estimator of a Bradley-Terry reward: epsilon sets the scale of the margins.

        q    = sigmoid(beta * (log_ratio(chosen) - log_ratio(rejected)))
        loss = q * log(q / (1 - epsilon)) + (1 - q) * log((1 - q) / epsilon)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta: How much of a log-ratio counts as preference (beta_pi in the paper). A small beta
            asks for larger log-ratio margins.
        epsilon: Probability that the label gives to the rejected completion. A smaller one asks
            for larger margins.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Ji et al. 2024, arXiv:2402.00856, eq. 16.
    """
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    chosen = torch.sigmoid(margin) * (logsigmoid(margin) - math.log1p(-epsilon))
    rejected = torch.sigmoid(-margin) * (logsigmoid(-margin) - math.log(epsilon))
    return chosen + rejected


def exo_pref_initial_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, epsilon: OpenHalfFraction = 1e-3
) -> Float[Tensor, " B"]:
    """`-log 2 - log(epsilon * (1 - epsilon)) / 2`: the policy's preference is a coin toss."""
    value = -math.log(2) - 0.5 * math.log(epsilon * (1 - epsilon))
    return torch.full_like(pairs.chosen.policy, value)


CARD = Card(
    loss=exo_pref_loss,
    data=PairedLogProbs,
    source="arXiv:2402.00856, eq. 16",
    title="efficient exact optimization on pairs",
    target=(
        "none claimed over many completions; a single comparison won with probability p ends at "
        "the margin (2p - 1) log((1 - epsilon) / epsilon), not at logit(p)"
    ),
    elsewhere="loss_type='exo_pair', label_smoothing=epsilon of TRL and Liger-Kernel",
    initial_loss=exo_pref_initial_loss,
    reward_scale="beta",
)
