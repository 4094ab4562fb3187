"""EXO on pairs, in the form of the code that its authors released."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive

LOG_EPSILON = -10.0
"""Label of the rejected completion in the released code; that of the chosen one is 0."""


def exo_pref_official_loss(
    pairs: PairedLogProbs, *, beta_pi: Positive = 0.1
) -> Float[Tensor, " B"]:
    """Reverse KL from the policy's preference to the label (0, -10), which is not normalized.

    It equals `exo_pref` with epsilon = 1 / (1 + e^10) = 4.54e-5, less the constant
    `log(1 + e^-10)`; use it to reproduce runs of the released code.

        q    = sigmoid(beta_pi * (log_ratio(chosen) - log_ratio(rejected)))
        loss = q * log(q) + (1 - q) * (log(1 - q) + 10)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta_pi: How much of a log-ratio counts as preference. A small beta_pi asks for larger
            log-ratio margins. The released settings are 0.1 and 0.5.

    Returns:
        Loss of each pair, in nats, not reduced; slightly negative at its minimum.

    Differs from the paper:
        The paper's eq. 16 has a normalized label with a free epsilon; see `exo_pref`.

    Source:
        Ji et al. 2024, arXiv:2402.00856, the released code's loss on preference pairs.
    """
    margin = beta_pi * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    chosen = torch.sigmoid(margin) * logsigmoid(margin)
    rejected = torch.sigmoid(-margin) * (logsigmoid(-margin) - LOG_EPSILON)
    return chosen + rejected


def exo_pref_official_initial_loss(
    pairs: PairedLogProbs, *, beta_pi: Positive = 0.1
) -> Float[Tensor, " B"]:
    """`5 - log 2`: half the weight is on a label of -10."""
    return torch.full_like(pairs.chosen.policy, 5 - math.log(2))


CARD = Card(
    loss=exo_pref_official_loss,
    data=PairedLogProbs,
    source="arXiv:2402.00856, released code",
    title="efficient exact optimization on pairs, as released",
    target=(
        "none claimed over many completions; a single comparison won with probability p ends at "
        "the margin 10 (2p - 1)"
    ),
    elsewhere="what the released code of the paper computes",
    initial_loss=exo_pref_official_initial_loss,
    reward_scale="beta_pi",
)
