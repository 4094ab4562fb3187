"""PMLE: preference maximum likelihood estimation."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.ranges import Positive


def pmle_loss(pairs: PairedLogProbs, *, gamma: Positive = 0.1) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the preferences when they come from the target model itself.

    A completion is preferred in proportion to the target's probability of it, to the power gamma.
    The policy is compared on its own log-probabilities and there is no reference: that is the
    difference from DPO. Nothing cancels the length, so pairs of very different lengths have large
    margins; use a small gamma for long completions.

        loss = -log sigmoid(gamma * (policy(chosen) - policy(rejected)))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens; the reference is not read.
        gamma: Sharpness of the preferences. A small gamma asks for larger log-probability margins,
            hence for a more peaked policy.

    Returns:
        Loss of each pair, in nats, not reduced.

    Differs from the paper:
        The paper states a Bradley-Terry-like link between preferences and the target model; that
        its scale is a power gamma of the probability, and the name gamma, are our reading.

    Source:
        Yun et al. 2025, arXiv:2506.01523, preference maximum likelihood.
    """
    return -logsigmoid(gamma * (pairs.chosen.policy - pairs.rejected.policy))


def pmle_optimum(problem: FiniteProblem, *, gamma: Positive = 0.1) -> Float[Tensor, " Y"]:
    """The target model of the link, proportional to `exp(reward / gamma)`; any pairs, no reference.

    Bradley-Terry preferences of a reward are those of the target whose log-probability, times
    gamma, is that reward up to a constant.
    """
    assert problem.reward is not None, "the optimum is known where preferences follow a reward"
    return torch.log_softmax(problem.reward / gamma, dim=-1)


CARD = Card(
    loss=pmle_loss,
    data=PairedLogProbs,
    source="arXiv:2506.01523, preference maximum likelihood",
    title="preference maximum likelihood estimation",
    target="the model whose probabilities to the power gamma give the preferences",
    optimum=pmle_optimum,
    needs_reference=False,
    reward_scale="gamma",
)
