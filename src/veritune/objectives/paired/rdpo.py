"""rDPO: provably robust DPO, unbiased under flipped labels."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.ranges import HalfFraction, Positive


def rdpo_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, epsilon: HalfFraction = 0.1
) -> Float[Tensor, " B"]:
    """An estimate of the DPO loss on clean labels from labels that were flipped at a known rate.

    Its mean over the flips of a label is the DPO loss of the label before. It is unbounded below,
    so that the margin of a pair whose label is never flipped grows without end. Other toolkits call
    it robust; `robust_dpo` here is label smoothing, which is biased and bounded below. At
    epsilon = 0 both are DPO.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected))
        loss   = (-(1 - epsilon) * log sigmoid(margin) + epsilon * log sigmoid(-margin))
                 / (1 - 2 * epsilon)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta: Weight of the KL penalty. A small beta lets the optimum move far from the reference.
        epsilon: Rate at which labels were flipped. Too large a value drives margins without end.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Chowdhury, Kini & Natarajan 2024, arXiv:2403.00409, the rDPO loss.
    """
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    # log sigmoid(-margin) = log sigmoid(margin) - margin: what is left does not cancel.
    return -logsigmoid(margin) - epsilon / (1 - 2 * epsilon) * margin


def rdpo_initial_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, epsilon: HalfFraction = 0.1
) -> Float[Tensor, " B"]:
    """`log 2`: at margin zero both terms are `log 2`, and their weights add up to one."""
    return torch.full_like(pairs.chosen.policy, math.log(2))


def rdpo_optimum(
    problem: FiniteProblem, *, beta: Positive = 0.1, epsilon: HalfFraction = 0.1
) -> Float[Tensor, " Y"]:
    """The reference tilted by the reward that labels followed before they were flipped."""
    assert problem.reward is not None, "the optimum is known where preferences follow a reward"
    return tilted_reference(problem.reference, problem.reward / beta)


CARD = Card(
    loss=rdpo_loss,
    data=PairedLogProbs,
    source="arXiv:2403.00409",
    title="provably robust direct preference optimization",
    target=(
        "the reference tilted by exp(reward / beta), if preferences follow Bradley-Terry and each "
        "label was then flipped with probability epsilon; where labels are cleaner than that, the "
        "margin of clear pairs grows without end"
    ),
    elsewhere="loss_type='robust', label_smoothing=epsilon of TRL and Liger-Kernel",
    optimum=rdpo_optimum,
    initial_loss=rdpo_initial_loss,
    reward_scale="beta",
)
