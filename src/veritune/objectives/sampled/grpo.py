"""GRPO: group relative policy optimization."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import SampledLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.sampled.importance import clipped_gain, importance_ratio
from veritune.ranges import NonNegative, OpenFraction


def grpo_loss(
    samples: SampledLogProbs, *, epsilon: OpenFraction = 0.2, beta: NonNegative = 0.04
) -> Float[Tensor, " B"]:
    """Clipped policy gradient whose baseline and scale are the group's mean and deviation.

    There is no value model: every token of a completion has the advantage of the completion, and
    the mean over a completion's tokens makes a token of a long completion count less. Dividing by
    the deviation weighs prompts on which rewards differ little as much as those on which they
    differ much; what it converges to is therefore no reward-tilted reference (see `dr_grpo`).

        advantage(i) = (reward(i) - mean of the group) / standard deviation of the group
        ratio(i, t)  = exp(policy(i, t) - behavior(i, t))
        penalty(i,t) = exp(reference - policy) - (reference - policy) - 1
        loss         = -mean over i of mean over t of
                        (min(ratio * advantage, clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)
                         - beta * penalty)

    A group whose rewards are all equal has advantage zero.

    Args:
        samples: Completions of the behavior, token by token, in nats, and their rewards.
        epsilon: Largest relative change of a token's probability that is rewarded.
        beta: Weight of the KL penalty to the reference. Several toolkits set it to 0.

    Returns:
        Loss of each group, not reduced.

    Differs from the paper:
        From 10 nats on a ratio is its tangent line. The standard deviation divides by the number
        of completions; toolkits that divide by one less have advantages smaller by
        sqrt((K - 1) / K).

    Source:
        Shao et al. 2024, arXiv:2402.03300, eq. 3 and 4.
    """
    assert samples.reference is not None, "the KL penalty has a reference"
    present = samples.present
    centered = samples.rewards - group_mean(samples.rewards, present)[:, None]
    deviation = group_mean(centered**2, present).sqrt()[:, None]
    # Equal rewards leave rounding in the difference; 1e-6 of the rewards' size is no preference.
    size = torch.where(present, samples.rewards, 0).abs().amax(dim=-1, keepdim=True)
    differ = deviation > 1e-6 * size
    advantage = torch.where(differ, centered / torch.where(differ, deviation, 1), 0)
    gain = clipped_gain(
        samples.behavior_log_ratio, advantage[..., None].expand_as(samples.policy), epsilon
    )
    away = torch.where(samples.bears_loss, samples.reference - samples.policy, 0)
    penalty = importance_ratio(away) - away - 1
    terms = torch.where(samples.bears_loss, gain - beta * penalty, 0)
    return -group_mean(terms.sum(dim=-1) / samples.completions.length.clamp(min=1), present)


CARD = Card(
    loss=grpo_loss,
    data=SampledLogProbs,
    source="arXiv:2402.03300, eq. 3",
    title="group relative policy optimization",
    target="none claimed; the group's deviation in the advantage changes the objective",
    elsewhere="GRPOTrainer of TRL with loss_type='grpo', beta, use_bias_correction_kl=False",
    reward_scale="beta",
)
