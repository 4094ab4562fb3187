"""Preference distillation on samples of the policy."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import SampledLogProbs, ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.scored.preference_distillation import (
    preference_distillation_loss,
    preference_distillation_optimum,
)
from veritune.ranges import Positive


def online_preference_distillation_loss(
    samples: SampledLogProbs, *, gamma: Positive = 0.1
) -> Float[Tensor, " B"]:
    """Preference distillation whose pairs are fresh samples of the policy.

    The samples are treated as data: no gradient passes through how they were drawn, and the
    behavior is not read. Comparisons are spent where the policy has its probability.

        p(i, j) = sigmoid(reward(i) - reward(j))
        q(i, j) = sigmoid(gamma * (policy(i) - policy(j)))
        loss    = -mean over the pairs i < j of the group of
                   (p(i, j) * log q(i, j) + p(j, i) * log q(j, i))

    Args:
        samples: Completions of the policy, in nats, and their rewards: the log-odds of a
            preference model.
        gamma: Sharpness of the preferences, as in `preference_distillation`.

    Returns:
        Loss of each group, in nats, not reduced.

    Differs from the paper:
        As in `preference_distillation`.

    Source:
        Yun et al. 2025, arXiv:2506.01523, preference distillation with pairs from the policy.
    """
    groups = ScoredLogProbs(samples.completions, samples.rewards, samples.present)
    return preference_distillation_loss(groups, gamma=gamma)


def online_preference_distillation_optimum(
    problem: FiniteProblem, *, gamma: Positive = 0.1
) -> Float[Tensor, " Y"]:
    """That of `preference_distillation`: the law proportional to `exp(reward / gamma)`."""
    return preference_distillation_optimum(problem, gamma=gamma)


CARD = Card(
    loss=online_preference_distillation_loss,
    data=SampledLogProbs,
    source="arXiv:2506.01523, preference distillation",
    title="preference distillation on samples of the policy",
    target="the law proportional to exp(reward / gamma), whatever the reference",
    optimum=online_preference_distillation_optimum,
    needs_reference=False,
    reward_scale="gamma",
)
