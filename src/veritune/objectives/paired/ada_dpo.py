"""Ada-DPO: direct preference optimization with a scale of its own for each pair."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.paired.adaptive_scale import adaptive_scale, linear_prices, scaled_loss
from veritune.ranges import Positive


def ada_dpo_loss(
    pairs: PairedLogProbs,
    *,
    beta: Positive = 0.1,
    tau_0: Positive = 0.1,
    tau_max: Positive = 5.0,
    rho_0: Positive = 0.1,
) -> Float[Tensor, " B"]:
    """Preference loss at the scale of rewards that suits each pair best.

    The scale tau is small where a preference is doubtful, so that a small margin expresses it, and
    large where it is clear, so that the margin can grow. It comes from a worst case over the two
    outcomes within a KL ball; rho_0 is the radius. The force on a pair is that of DPO at the
    margin divided by tau; with tau_0 = tau_max = 1 the loss is that of DPO plus a constant.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected))
        loss   = min over tau_0 <= tau <= max(tau_0, tau_max) of
                 -tau * log sigmoid(margin / tau) + (rho_0 - log 2) * tau

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta: Scale of the implicit reward. The paper merges it into tau; the released code does
            not.
        tau_0: Smallest scale. A small one lets doubtful pairs end at small margins.
        tau_max: Largest scale; one below tau_0 counts as tau_0. A large one lets clear pairs end at
            large margins.
        rho_0: Radius of the ball, in nats: a pair is clear where the entropy of its preference is
            below log 2 - rho_0. From log 2 on, every pair has scale tau_0.

    Returns:
        Loss of each pair, in nats, not reduced; negative for clear pairs.

    Differs from the paper:
        tau is the minimizer to full convergence, in float64. The released code takes five Newton
        steps from tau = 1, and leaves the term in rho_0 out of the loss that it reports; that term
        has no gradient at a fixed tau. With it the loss is the minimum that the paper states, and
        its derivative is that of the function and not of one part of it. The paper's rho is
        `rho_0 - log 2` here.

    Source:
        Hong et al. 2024, arXiv:2406.02764, Ada-DPO with the linear penalty.
    """
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    prices = linear_prices(rho_0)
    tau = adaptive_scale(margin, prices, lowest=tau_0, highest=max(tau_0, tau_max))
    return scaled_loss(margin, tau, prices)


def ada_dpo_initial_loss(
    pairs: PairedLogProbs,
    *,
    beta: Positive = 0.1,
    tau_0: Positive = 0.1,
    tau_max: Positive = 5.0,
    rho_0: Positive = 0.1,
) -> Float[Tensor, " B"]:
    """`rho_0 * tau_0`: a margin of zero costs `tau log 2`, so the smallest scale is the best."""
    return torch.full_like(pairs.chosen.policy, rho_0 * tau_0)


CARD = Card(
    loss=ada_dpo_loss,
    data=PairedLogProbs,
    source="arXiv:2406.02764, linear penalty",
    title="direct preference optimization with adaptive scales",
    target=(
        "none in closed form over many completions; a single comparison won with probability p "
        "ends at the margin tau logit(p), where tau is tau_max if the entropy of p is below "
        "log 2 - rho_0 and tau_0 if it is above; where it is above for every pair of Bradley-Terry "
        "data, the reference tilted by exp(tau_0 reward / beta)"
    ),
    initial_loss=ada_dpo_initial_loss,
    reward_scale="beta",
)
