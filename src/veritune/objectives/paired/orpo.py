"""ORPO: odds ratio preference optimization."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.tangent import beyond
from veritune.ranges import NonNegative

TANGENT_FROM = -1e-6
"""Mean log-probability, in nats, from which the log-odds are their tangent line."""


def orpo_loss(pairs: PairedLogProbs, *, odds_weight: NonNegative = 0.1) -> Float[Tensor, " B"]:
    """Likelihood per token of the chosen completion, plus a preference in terms of odds.

    It trains supervised and preference stage at once and has no reference. The probability of a
    completion is the geometric mean of its tokens' probabilities.

        odds = p / (1 - p) with p = exp(policy / length)
        loss = -policy(chosen) / length(chosen)
               - odds_weight * log sigmoid(log odds(chosen) - log odds(rejected))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, and lengths in tokens;
            the reference is not read.
        odds_weight: Weight of the preference, lambda in the paper. A larger one pushes rejected
            completions down more; 0 is `chosen_nll_mean`.

    Returns:
        Loss of each pair, in nats, not reduced.

    Differs from the paper:
        The log-odds of a completion that is certain are infinite, and float32 rounds near-certain
        ones to certain. From a mean log-probability of -1e-6 on they follow their tangent, so that
        loss and gradient stay finite. The released code's likelihood includes the prompt.

    Source:
        Hong, Lee & Thorne 2024, arXiv:2403.07691, eqs. 6 and 7.
    """
    chosen = pairs.chosen.policy / pairs.chosen.length
    rejected = pairs.rejected.policy / pairs.rejected.length
    preference = -logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return -chosen + odds_weight * preference


def _log_odds(logprob: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """log(p / (1 - p)) of a probability given by its logarithm."""
    clamped = logprob.clamp(max=TANGENT_FROM)
    curve = clamped - torch.log(-torch.expm1(clamped))
    # d/dx log odds = 1 / (1 - p); below the tangent the second summand is zero.
    return curve + beyond(logprob, TANGENT_FROM) / -math.expm1(TANGENT_FROM)


CARD = Card(
    loss=orpo_loss,
    data=PairedLogProbs,
    source="arXiv:2403.07691, eqs. 6 and 7",
    title="odds ratio preference optimization",
    target=(
        "none in closed form; as odds_weight falls to 0, the law of chosen completions, each "
        "weighted by 1 / length"
    ),
    elsewhere=(
        "ORPOTrainer of TRL, beta=odds_weight, whose likelihood is a mean over all tokens of "
        "a micro-batch"
    ),
    needs_reference=False,
)
