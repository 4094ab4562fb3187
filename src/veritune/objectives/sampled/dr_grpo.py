"""Dr. GRPO: group relative policy optimization without its two biases."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import SampledLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.sampled.importance import clipped_gain
from veritune.ranges import OpenFraction


def dr_grpo_loss(samples: SampledLogProbs, *, epsilon: OpenFraction = 0.2) -> Float[Tensor, " B"]:
    """GRPO without the division by the group's deviation and by the length of a completion.

    What is left is the policy gradient of the plain reward with the group's mean as the baseline;
    for groups of K it is, in expectation, (K - 1) / K of the gradient.

        advantage(i) = reward(i) - mean of the group
        ratio(i, t)  = exp(policy(i, t) - behavior(i, t))
        loss         = -mean over i of sum over t of
                        min(ratio * advantage, clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)

    Args:
        samples: Completions of the behavior, token by token, in nats, and their rewards.
        epsilon: Largest relative change of a token's probability that is rewarded.

    Returns:
        Loss of each group, in units of reward, not reduced.

    Differs from the paper:
        From 10 nats on a ratio is its tangent line. The released code divides the sum over tokens
        by a constant length, which is a matter of the learning rate.

    Source:
        Liu et al. 2025, arXiv:2503.20783.
    """
    present = samples.present
    advantage = samples.rewards - group_mean(samples.rewards, present)[:, None]
    gain = clipped_gain(
        samples.behavior_log_ratio, advantage[..., None].expand_as(samples.policy), epsilon
    )
    return -group_mean(torch.where(samples.bears_loss, gain, 0).sum(dim=-1), present)


CARD = Card(
    loss=dr_grpo_loss,
    data=SampledLogProbs,
    source="arXiv:2503.20783",
    title="group relative policy optimization done right",
    target="none of its own; the best completion, on fresh samples: nothing holds the policy back",
    elsewhere="GRPOTrainer of TRL with loss_type='dr_grpo', which divides by a constant length",
    needs_reference=False,
)
