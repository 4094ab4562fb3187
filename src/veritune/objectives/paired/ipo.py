"""IPO: identity preference optimization."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem, tilted_reference, win_probability
from veritune.ranges import Positive


def ipo_loss(pairs: PairedLogProbs, *, tau: Positive = 0.1) -> Float[Tensor, " B"]:
    """Squared distance of the log-ratio margin from a fixed target.

    Each pair is pulled to the margin `1 / (2 tau)` and back from beyond it, so that a pair on
    which all agree does not drive the policy to the end of the scale. No reward is assumed.

        margin = log_ratio(chosen) - log_ratio(rejected)
        loss   = (margin - 1 / (2 * tau))^2

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens. Some toolkits divide by
            the length; the paper does not, and neither does this.
        tau: Weight of the KL penalty. A small tau asks for large margins. Many toolkits call it
            beta.

    Returns:
        Loss of each pair, in squared nats, not reduced.

    Source:
        Azar et al. 2023, arXiv:2310.12036, eq. 17.
    """
    log_ratio_margin = pairs.chosen.log_ratio - pairs.rejected.log_ratio
    return (log_ratio_margin - 1 / (2 * tau)) ** 2


def ipo_optimum(problem: FiniteProblem, *, tau: Positive = 0.1) -> Float[Tensor, " Y"]:
    """The reference tilted by the win probability, if the two of a pair are drawn independently
    from one law (section 4 of the paper)."""
    return tilted_reference(problem.reference, win_probability(problem) / tau)


def ipo_initial_loss(pairs: PairedLogProbs, *, tau: Positive = 0.1) -> Float[Tensor, " B"]:
    """`1 / (4 tau^2)`: the margin is zero, the target is not."""
    return torch.full_like(pairs.chosen.policy, 1 / (4 * tau**2))


CARD = Card(
    loss=ipo_loss,
    data=PairedLogProbs,
    source="arXiv:2310.12036, eq. 17",
    title="identity preference optimization",
    target=(
        "the reference tilted by exp(win probability / tau), for any preferences, if the "
        "two of a pair are drawn independently from one law"
    ),
    elsewhere="IPO of OpenRLHF; loss_type='ipo' of TRL is ipo_mean",
    optimum=ipo_optimum,
    initial_loss=ipo_initial_loss,
    reward_scale="tau",
)
