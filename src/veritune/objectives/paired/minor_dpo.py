"""MinorDPO: direct preference optimization that stops pushing rejected completions down."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive


def minor_dpo_loss(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """DPO in which a rejected completion counts only while it is likelier than in the reference.

    Below the reference's likelihood a rejected completion has no gradient, and only the chosen one
    is still raised. At exactly the reference's the gradient is that of DPO, so the first step is,
    too: the function has a kink there, and this is the slope from above.

        loss = -log sigmoid(beta * log_ratio(chosen) - beta * max(0, log_ratio(rejected)))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta: Scale of the implicit reward. A small beta lets the policy move far from the
            reference.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Xie et al. 2024, arXiv:2408.09834, the MinorDPO loss.
    """
    penalty = pairs.rejected.log_ratio.clamp(min=0)
    return -logsigmoid(beta * (pairs.chosen.log_ratio - penalty))


def minor_dpo_initial_loss(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """`log 2`: every log-ratio is zero."""
    return torch.full_like(pairs.chosen.policy, math.log(2))


CARD = Card(
    loss=minor_dpo_loss,
    data=PairedLogProbs,
    source="arXiv:2408.09834",
    title="direct preference optimization with a minor rejection penalty",
    target=(
        "none claimed; it is no estimator of a Bradley-Terry reward, and where preferences are "
        "deterministic the chosen log-ratios grow as far as probabilities allow"
    ),
    initial_loss=minor_dpo_initial_loss,
    reward_scale="beta",
)
