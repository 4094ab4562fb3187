"""BCO on pairs: binary classifier optimization of chosen against rejected completions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive


def bco_pair_loss(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """Cross-entropy of a classifier of chosen and rejected whose logit is the implicit reward.

    The reward is counted from delta, the mean reward of the steps so far, which carries no
    gradient. For any delta the loss exceeds that of DPO on the same pair. `bco` is the same for
    completions that do not come in pairs.

        delta = beta * mean_log_ratio
        loss  = -log sigmoid(beta * log_ratio(chosen) - delta)
                - log sigmoid(delta - beta * log_ratio(rejected))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, and the mean log-ratio of
            earlier steps.
        beta: Scale of the implicit reward. A small beta lets the policy move far from the
            reference.

    Returns:
        Loss of each pair, in nats, not reduced.

    Differs from the paper:
        The running mean is over earlier steps; older versions of TRL include the step's own batch,
        and version 1.16 takes delta to be zero.

    Source:
        Jung et al. 2024, arXiv:2404.04656, the binary cross-entropy with reward shift.
    """
    assert pairs.mean_log_ratio is not None, "BCO declares that it needs the mean log-ratio"
    mean_log_ratio = pairs.mean_log_ratio.detach()
    chosen = beta * (pairs.chosen.log_ratio - mean_log_ratio)
    rejected = beta * (pairs.rejected.log_ratio - mean_log_ratio)
    return -logsigmoid(chosen) - logsigmoid(-rejected)


def bco_pair_initial_loss(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """`2 log 2`: at the first step delta is zero, too."""
    return torch.full_like(pairs.chosen.policy, 2 * math.log(2))


CARD = Card(
    loss=bco_pair_loss,
    data=PairedLogProbs,
    source="arXiv:2404.04656",
    title="binary classifier optimization on pairs",
    target="none claimed in closed form; the loss bounds that of direct preference optimization",
    elsewhere=(
        "loss_type='bco_pair' of TRL and Liger-Kernel, which since TRL 0.29 leave the shift out"
    ),
    initial_loss=bco_pair_initial_loss,
    needs_mean_log_ratio=True,
    reward_scale="beta",
)
