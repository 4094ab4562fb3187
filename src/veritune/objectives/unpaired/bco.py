"""BCO: binary classifier optimization."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.unpaired.class_mean import class_mean_weight
from veritune.ranges import Positive


def bco_loss(labels: UnpairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """Cross-entropy of a classifier of labels whose logit is the implicit reward.

    The reward is counted from delta, the mean reward of the steps so far, which carries no
    gradient. For any delta, the losses of a desirable and an undesirable completion of one prompt
    add up to more than the DPO loss of the two as a pair.

        delta        = beta * mean_log_ratio
        desirable:   loss = -(n / n_desirable)   * log sigmoid(beta * log_ratio - delta)
        undesirable: loss = -(n / n_undesirable) * log sigmoid(delta - beta * log_ratio)

    with n, n_desirable and n_undesirable counted over the global batch: the mean over its
    examples is the sum of the two class means.

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens, the
            counts of both labels in the global batch, and the mean log-ratio of earlier steps.
        beta: Scale of the implicit reward. A small beta lets the policy move far from the
            reference.

    Returns:
        Loss of each example, in nats, not reduced.

    Differs from the paper:
        Where desirable and undesirable completions answer different prompts, the paper weighs
        undesirable examples by the density ratio of the two kinds of prompts, estimated by a
        classifier on prompt embeddings. That weight is left out; it is 1 where both kinds answer
        the same prompts.

    Source:
        Jung et al. 2024, arXiv:2404.04656, the binary cross-entropy with reward shift.
    """
    assert labels.mean_log_ratio is not None, "BCO declares that it needs the mean log-ratio"
    gain = beta * (labels.completion.log_ratio - labels.mean_log_ratio.detach())
    loss = torch.where(labels.desirable, -logsigmoid(gain), -logsigmoid(-gain))
    return class_mean_weight(labels) * loss


def bco_initial_loss(labels: UnpairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """`log 2` times the weight of the class: at the first step delta is zero, too."""
    return class_mean_weight(labels) * math.log(2)


CARD = Card(
    loss=bco_loss,
    data=UnpairedLogProbs,
    source="arXiv:2404.04656",
    title="binary classifier optimization",
    target="none claimed in closed form; the loss bounds that of direct preference optimization",
    initial_loss=bco_initial_loss,
    needs_mean_log_ratio=True,
    reward_scale="beta",
)
