"""RPO with the likelihood term per token, as several toolkits have it."""

import math

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.paired.dpo import dpo_loss
from veritune.ranges import NonNegative, Positive


def rpo_mean_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.01, sft_weight: NonNegative = 0.005
) -> Float[Tensor, " B"]:
    """DPO plus the likelihood per token of the chosen completion.

    The weight is not multiplied by beta, and a long completion counts no more than a short one: a
    value of eta from the paper means something else here.

        loss = -log sigmoid(beta * (log_ratio(chosen) - log_ratio(rejected)))
               - sft_weight * policy(chosen) / length(chosen)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, and lengths in tokens.
        beta: Weight of the KL penalty. A small beta lets the policy move far from the reference.
        sft_weight: Weight of the likelihood. A larger one holds the policy closer to the chosen
            completions; 0 is DPO. TRL suggests 0.005, OpenRLHF's script 0.2 with beta = 0.5, and
            1 is usual for reasoning (`rpo_alpha`).

    Returns:
        Loss of each pair, in nats, not reduced.

    Differs from the paper:
        The paper's code sums over tokens and multiplies by beta; see `rpo`. OpenRLHF has the form
        of this file; TRL takes one mean over all chosen tokens of a micro-batch instead of the mean
        of each completion. Pang et al. 2024 (arXiv:2404.19733), after whom older versions of TRL
        name the weight `rpo_alpha`, weigh the preference term instead.

    Source:
        Liu et al. 2024, arXiv:2405.16436, as implemented in TRL and OpenRLHF.
    """
    likelihood = pairs.chosen.policy / pairs.chosen.length
    return dpo_loss(pairs, beta=beta) - sft_weight * likelihood


def rpo_mean_initial_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.01, sft_weight: NonNegative = 0.005
) -> Float[Tensor, " B"]:
    """`log 2` and the weighted likelihood per token of the chosen completion at the start."""
    assert pairs.chosen.reference is not None, "the initial loss is that of the reference"
    return math.log(2) - sft_weight * pairs.chosen.reference / pairs.chosen.length


CARD = Card(
    loss=rpo_mean_loss,
    data=PairedLogProbs,
    source="arXiv:2405.16436, as in TRL and OpenRLHF",
    title="regularized preference optimization, likelihood per token",
    target=(
        "none in closed form; that of direct preference optimization as sft_weight falls to 0, the "
        "law of chosen completions, each weighted by 1 / length, as it grows"
    ),
    elsewhere=(
        "loss_type=['sigmoid', 'sft'] of TRL, whose likelihood is a mean over all tokens of a "
        "micro-batch"
    ),
    initial_loss=rpo_mean_initial_loss,
    reward_scale="beta",
)
