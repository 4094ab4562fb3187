"""RPO: regularized preference optimization."""

import math

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.paired.dpo import dpo_loss
from veritune.ranges import NonNegative, Positive


def rpo_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.01, eta: NonNegative = 0.005
) -> Float[Tensor, " B"]:
    """DPO plus the likelihood of the chosen completion.

    The sum solves a worst case over rewards that explain the data about as well, relative to
    a base policy; the base policy is the one that produced the chosen completions. In practice the
    second term keeps their likelihood from falling. The paper's weight is the product eta * beta,
    on log-probabilities summed over tokens.

        loss = -log sigmoid(beta * (log_ratio(chosen) - log_ratio(rejected)))
               - eta * beta * policy(chosen)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta: Weight of the KL penalty. A small beta lets the policy move far from the reference.
        eta: Weight of pessimism. A larger one holds the policy closer to the chosen completions;
            0 is DPO.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Liu et al. 2024, arXiv:2405.16436, the RPO objective; summed as in the released code.
    """
    return dpo_loss(pairs, beta=beta) - eta * beta * pairs.chosen.policy


def rpo_initial_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.01, eta: NonNegative = 0.005
) -> Float[Tensor, " B"]:
    """`log 2` and the weighted likelihood of the chosen completion under the reference."""
    assert pairs.chosen.reference is not None, "the initial loss is that of the reference"
    return math.log(2) - eta * beta * pairs.chosen.reference


CARD = Card(
    loss=rpo_loss,
    data=PairedLogProbs,
    source="arXiv:2405.16436",
    title="regularized preference optimization",
    target=(
        "none in closed form; that of direct preference optimization as eta falls to 0, the law "
        "of chosen completions as eta grows"
    ),
    initial_loss=rpo_initial_loss,
    reward_scale="beta",
)
