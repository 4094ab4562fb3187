"""Pooled RDRO: relative density ratio optimization with the released trainer's mean."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import OpenFraction


def rdro_pooled_loss(labels: UnpairedLogProbs, *, alpha: OpenFraction) -> Float[Tensor, " B"]:
    """The terms of RDRO, each example with the same weight.

    For reproducing runs of the released code; otherwise use `rdro`. In data with a fraction alpha
    of desirable examples the undesirable term weighs `(1 - alpha) / alpha` times too much, and the
    ratio policy / reference is pulled to `p+ / (alpha p+ + (1 - alpha)^2 / alpha * p-)`: the
    minimizer is the law of desirable completions only if alpha is one half.

        desirable:   loss = (1 + alpha) * softplus(log_ratio) - log_ratio
        undesirable: loss = (1 - alpha) * softplus(log_ratio)

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens.
        alpha: Share of desirable completions in what the reference produces. A smaller one lets
            the policy move farther.

    Returns:
        Loss of each example, in nats, not reduced.

    Source:
        Takahashi et al. 2026, arXiv:2604.04410, the released code.
    """
    log_ratio = labels.completion.log_ratio
    # softplus(x) = -logsigmoid(-x); torch's own softplus is cut to a line from x = 20 on.
    softplus = -logsigmoid(-log_ratio)
    return torch.where(labels.desirable, (1 + alpha) * softplus - log_ratio, (1 - alpha) * softplus)


def rdro_pooled_initial_loss(
    labels: UnpairedLogProbs, *, alpha: OpenFraction
) -> Float[Tensor, " B"]:
    """`(1 + alpha) log 2` for desirable, `(1 - alpha) log 2` for undesirable examples."""
    sign = 2 * labels.desirable.to(labels.completion.policy.dtype) - 1
    return (1 + alpha * sign) * math.log(2)


CARD = Card(
    loss=rdro_pooled_loss,
    data=UnpairedLogProbs,
    source="arXiv:2604.04410, released code",
    title="relative density ratio optimization, pooled mean",
    target="none in closed form; the law of desirable completions only if alpha is one half",
    elsewhere="what the released trainer of the paper computes",
    initial_loss=rdro_pooled_initial_loss,
    data_fraction="alpha",
)
