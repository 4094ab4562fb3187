"""Ada-DPO with a quadratic penalty on the scale."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.paired.adaptive_scale import (
    adaptive_scale,
    quadratic_prices,
    scaled_loss,
)
from veritune.ranges import Positive


def ada_dpo_quadratic_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, tau_0: Positive = 0.1, rho_0: Positive = 0.1
) -> Float[Tensor, " B"]:
    """Preference loss at the scale of rewards that suits each pair best, of any size at a price.

    As `ada_dpo`, but the scale grows gradually with the clarity of the preference instead of
    jumping from the smallest to the largest, and needs no upper end: it never exceeds
    `log 2 / (2 rho_0)`, or tau_0 if that is larger.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected))
        loss   = min over tau >= tau_0 of
                 -tau * log sigmoid(margin / tau) + rho_0 * tau^2 - tau * log 2

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta: Scale of the implicit reward. The paper merges it into tau; the released code does
            not.
        tau_0: Smallest scale. A small one lets doubtful pairs end at small margins.
        rho_0: Price of a large scale. A small one lets clear pairs end at large margins.

    Returns:
        Loss of each pair, in nats, not reduced; negative for clear pairs.

    Differs from the paper:
        tau is the minimizer to full convergence, in float64, and the loss includes the penalty
        on it: see `ada_dpo`.

    Source:
        Hong et al. 2024, arXiv:2406.02764, Ada-DPO with the quadratic penalty.
    """
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    prices = quadratic_prices(rho_0)
    # No entropy is below zero, so the derivative is not negative from here on.
    highest = max(tau_0, math.log(2) / (2 * rho_0))
    tau = adaptive_scale(margin, prices, lowest=tau_0, highest=highest)
    return scaled_loss(margin, tau, prices)


def ada_dpo_quadratic_initial_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, tau_0: Positive = 0.1, rho_0: Positive = 0.1
) -> Float[Tensor, " B"]:
    """`rho_0 * tau_0^2`: a margin of zero costs `tau log 2`, so the smallest scale is the best."""
    return torch.full_like(pairs.chosen.policy, rho_0 * tau_0**2)


CARD = Card(
    loss=ada_dpo_quadratic_loss,
    data=PairedLogProbs,
    source="arXiv:2406.02764, quadratic penalty",
    title="direct preference optimization with adaptive scales, quadratic penalty",
    target=(
        "none in closed form over many completions; a single comparison won with probability p "
        "ends at the margin tau logit(p), where tau is the larger of tau_0 and "
        "(log 2 - entropy of p) / (2 rho_0)"
    ),
    initial_loss=ada_dpo_quadratic_initial_loss,
    reward_scale="beta",
)
