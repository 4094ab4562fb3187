"""DPO on log-ratios per token, which TRL calls sigmoid_norm."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive


def dpo_mean_loss(pairs: PairedLogProbs, *, beta: Positive = 5.0) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the preferences under implicit rewards per token.

    A long completion gains no reward by its length alone. The same beta weighs each token less by
    the length of its completion, so useful values are larger than those of `dpo`.

        margin = log_ratio(chosen) / length(chosen) - log_ratio(rejected) / length(rejected)
        loss   = -log sigmoid(beta * margin)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, and lengths in tokens.
        beta: Weight of the KL penalty, per token of a completion.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Lambert et al. 2024, arXiv:2411.15124, eq. 6; `sigmoid_norm` in TRL.
    """
    chosen = pairs.chosen.log_ratio / pairs.chosen.length
    rejected = pairs.rejected.log_ratio / pairs.rejected.length
    return -logsigmoid(beta * (chosen - rejected))


def dpo_mean_initial_loss(pairs: PairedLogProbs, *, beta: Positive = 5.0) -> Float[Tensor, " B"]:
    """`log 2`: every log-ratio is zero."""
    return torch.full_like(pairs.chosen.policy, math.log(2))


CARD = Card(
    loss=dpo_mean_loss,
    data=PairedLogProbs,
    source="arXiv:2411.15124, eq. 6",
    title="direct preference optimization, per token",
    target=(
        "derived here: the reference tilted by exp(length * (reward / beta + c)), with c such that "
        "it sums to one, if preferences follow Bradley-Terry"
    ),
    elsewhere="loss_type='sigmoid_norm' of TRL",
    initial_loss=dpo_mean_initial_loss,
    reward_scale="beta",
)
