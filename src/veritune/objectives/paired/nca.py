"""NCA on pairs: noise-contrastive alignment, by absolute likelihoods."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive


def nca_loss(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """Cross-entropy, for each completion alone, of telling chosen completions from all.

    The chosen completion is pulled up, and both are pulled down by half as much, each with a force
    that fades: a completion that is always chosen settles above the reference instead of only
    above its rival. It is `nca_rw` for groups of two whose softmax of scores is 1 and 0.

        loss = -log sigmoid(beta * log_ratio(chosen))
               - 1/2 * log sigmoid(-beta * log_ratio(chosen))
               - 1/2 * log sigmoid(-beta * log_ratio(rejected))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens. The method takes both to
            be drawn from the reference.
        beta: Scale of the implicit reward. A small beta asks for larger log-ratios; below 1, for
            likelihoods that add up to more than one, of which the law gets as near as it can.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Chen et al. 2024, arXiv:2402.05369, NCA for preference data.
    """
    chosen = beta * pairs.chosen.log_ratio
    rejected = beta * pairs.rejected.log_ratio
    return -logsigmoid(chosen) - 0.5 * (logsigmoid(-chosen) + logsigmoid(-rejected))


def nca_initial_loss(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """`2 log 2`: the weights of the three terms add up to two."""
    return torch.full_like(pairs.chosen.policy, 2 * math.log(2))


CARD = Card(
    loss=nca_loss,
    data=PairedLogProbs,
    source="arXiv:2402.05369, NCA on pairs",
    title="noise-contrastive alignment on pairs",
    target=(
        "at beta = 1, the reference times twice the win probability, for any preferences, if pairs "
        "are drawn from the reference; none in closed form at another beta"
    ),
    elsewhere="loss_type='nca_pair' of TRL and Liger-Kernel",
    initial_loss=nca_initial_loss,
    reward_scale="beta",
)
