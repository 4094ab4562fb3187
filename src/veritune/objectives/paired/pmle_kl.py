"""PMLE with a reverse-KL penalty to the reference."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.tangent import beyond
from veritune.ranges import NonNegative, Positive

TANGENT_FROM = 3.0
"""Log-ratio, in nats, from which the KL term is its tangent line."""


def pmle_kl_loss(
    pairs: PairedLogProbs, *, gamma: Positive = 0.1, kl_weight: NonNegative
) -> Float[Tensor, " B"]:
    """Preference maximum likelihood plus a penalty on KL(policy || reference).

    The penalty is an estimate from the pair's own completions, which it takes to be drawn from the
    reference: under the reference the mean of `ratio * log(ratio) - ratio + 1` is exactly
    KL(policy || reference). It is zero at the reference and positive elsewhere. Completions of
    another origin are still pulled toward the reference, but the sum is then no KL.

        ratio   = exp(log_ratio)
        penalty = ratio * log_ratio - ratio + 1, and beyond log_ratio = 3 its tangent line
        loss    = -log sigmoid(gamma * (policy(chosen) - policy(rejected)))
                  + kl_weight * (penalty(chosen) + penalty(rejected)) / 2

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        gamma: Sharpness of the preferences. A small gamma asks for a more peaked policy.
        kl_weight: Weight of the penalty, lambda in the paper; 0 is `pmle`. A larger one keeps the
            policy nearer to the reference.

    Returns:
        Loss of each pair, in nats, not reduced.

    Differs from the paper:
        The estimator and the tangent line, which keeps loss and gradient finite and limits the
        pull to `3 e^3 = 60` per completion, are ours. So is the reading of the link, as in `pmle`.

    Source:
        Yun et al. 2025, arXiv:2506.01523, preference maximum likelihood with the reverse-KL
        regularizer.
    """
    preference = -logsigmoid(gamma * (pairs.chosen.policy - pairs.rejected.policy))
    penalty = (_penalty(pairs.chosen.log_ratio) + _penalty(pairs.rejected.log_ratio)) / 2
    return preference + kl_weight * penalty


def _penalty(log_ratio: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    # exp overflows float32 at 88 nats. Below the clamp the second summand is zero; above, it is the
    # tangent, whose slope is d/dg (g e^g - e^g + 1) = g e^g.
    clamped = log_ratio.clamp(max=TANGENT_FROM)
    curve = torch.exp(clamped) * (clamped - 1) + 1
    slope = TANGENT_FROM * math.exp(TANGENT_FROM)
    return curve + slope * beyond(log_ratio, TANGENT_FROM)


def pmle_kl_initial_loss(
    pairs: PairedLogProbs, *, gamma: Positive = 0.1, kl_weight: NonNegative
) -> Float[Tensor, " B"]:
    """The likelihood of the preferences under the reference; the penalty is zero."""
    assert pairs.chosen.reference is not None
    assert pairs.rejected.reference is not None
    return torch.log1p(
        torch.exp(-gamma * (pairs.chosen.reference - pairs.rejected.reference).abs())
    ) + gamma * (pairs.rejected.reference - pairs.chosen.reference).clamp(min=0)


CARD = Card(
    loss=pmle_kl_loss,
    data=PairedLogProbs,
    source="arXiv:2506.01523, preference maximum likelihood with a reverse-KL regularizer",
    title="preference maximum likelihood with a KL penalty",
    target="none in closed form; between the model that explains the preferences and the reference",
    initial_loss=pmle_kl_initial_loss,
    reward_scale="gamma",
)
