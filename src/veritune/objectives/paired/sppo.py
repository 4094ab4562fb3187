"""SPPO: self-play preference optimization, with hard labels."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive


def sppo_loss(pairs: PairedLogProbs, *, beta: Positive = 0.001) -> Float[Tensor, " B"]:
    """Squared distance of each log-ratio, chosen and rejected apart, from a target of its own.

    One round of a game against the reference, in which a completion's log-ratio is to be its win
    probability, less one half, over beta. Each label stands for that probability: 1 for the chosen,
    0 for the rejected. The next round takes the policy as reference.

        loss = (log_ratio(chosen) - 1 / (2 * beta))^2 + (log_ratio(rejected) + 1 / (2 * beta))^2

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens. The method takes both to
            be drawn from the reference.
        beta: Inverse of the step size eta of the game. A small one asks for large log-ratios: the
            paper's 0.001 for 500 nats, which training is not meant to reach.

    Returns:
        Loss of each pair, in squared nats, not reduced.

    Differs from the paper:
        The paper estimates the win probability by a preference model over several samples; the
        hard labels are those of its Algorithm 1 with probabilities 1 and 0, as in other toolkits.

    Source:
        Wu et al. 2024, arXiv:2405.00675, eq. 4.7.
    """
    target = 1 / (2 * beta)
    return (pairs.chosen.log_ratio - target) ** 2 + (pairs.rejected.log_ratio + target) ** 2


def sppo_initial_loss(pairs: PairedLogProbs, *, beta: Positive = 0.001) -> Float[Tensor, " B"]:
    """`1 / (2 beta^2)`: both log-ratios are zero, and both targets `1 / (2 beta)` away."""
    return torch.full_like(pairs.chosen.policy, 1 / (2 * beta**2))


CARD = Card(
    loss=sppo_loss,
    data=PairedLogProbs,
    source="arXiv:2405.00675, eq. 4.7",
    title="self-play preference optimization, hard labels",
    target=(
        "unnormalized, the reference times exp((win probability - 1/2) / beta), if pairs are drawn "
        "from the reference; its probabilities sum to more than one, and the nearest law in the "
        "loss is not the tilted reference that the paper's game asks for"
    ),
    elsewhere="loss_type='sppo_hard' of TRL and Liger-Kernel",
    initial_loss=sppo_initial_loss,
    reward_scale="beta",
)
