"""The sigmoid-norm loss of RSO: statistical rejection sampling optimization."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.dpo import dpo_initial_loss, dpo_loss, dpo_optimum
from veritune.ranges import Positive


def rso_sigmoid_norm_loss(pairs: PairedLogProbs, *, gamma: Positive = 0.05) -> Float[Tensor, " B"]:
    """DPO with a scale that is not tied to the KL weight of the sampling.

    RSO draws pairs by rejection sampling toward the reference tilted by reward / beta, and labels
    them; gamma is free of that beta. As a function it is DPO with gamma in place of beta; what RSO
    adds is where the pairs come from. In TRL the same word stands for DPO on log-ratios per token.

        loss = -log sigmoid(gamma * (log_ratio(chosen) - log_ratio(rejected)))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        gamma: Scale of the implicit reward. A small one lets the policy move far from the
            reference.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Liu et al. 2023, arXiv:2309.06657, the sigmoid-norm loss.
    """
    return dpo_loss(pairs, beta=gamma)


def rso_sigmoid_norm_optimum(
    problem: FiniteProblem, *, gamma: Positive = 0.05
) -> Float[Tensor, " Y"]:
    """The reference tilted by the Bradley-Terry reward over gamma."""
    return dpo_optimum(problem, beta=gamma)


def rso_sigmoid_norm_initial_loss(
    pairs: PairedLogProbs, *, gamma: Positive = 0.05
) -> Float[Tensor, " B"]:
    """`log 2`, as for DPO."""
    return dpo_initial_loss(pairs, beta=gamma)


CARD = Card(
    loss=rso_sigmoid_norm_loss,
    data=PairedLogProbs,
    source="arXiv:2309.06657, sigmoid-norm",
    title="rejection sampling optimization, sigmoid loss on log-ratios",
    target="the reference tilted by exp(reward / gamma), if preferences follow Bradley-Terry",
    elsewhere="the same as dpo with beta=gamma; TRL's 'sigmoid_norm' is dpo_mean",
    optimum=rso_sigmoid_norm_optimum,
    initial_loss=rso_sigmoid_norm_initial_loss,
    reward_scale="gamma",
)
