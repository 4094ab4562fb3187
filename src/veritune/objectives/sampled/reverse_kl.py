"""Reverse KL to the model that a reward defines."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import SampledLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.sampled.importance import importance_ratio, leave_one_out_mean
from veritune.ranges import Positive


def reverse_kl_loss(samples: SampledLogProbs, *, gamma: Positive = 0.1) -> Float[Tensor, " B"]:
    """Estimate, from samples, of the reverse KL to the law proportional to `exp(reward / gamma)`.

    Alignment as distribution learning: the reward is read as the log-probability, times gamma, of
    the model that the preferences come from, and the policy is fitted to that model. It differs
    from RLHF by the entropy of the policy in place of its divergence from the reference, so a
    small temperature does not collapse it onto the best completion.

        cost(i)  = policy(i) - reward(i) / gamma
        ratio(i) = exp(policy(i) - behavior(i))
        loss     = mean over i of ratio(i) * (cost(i) - baseline(i))

    with baseline(i) the mean, over the other completions of the group, of the cost under the
    behavior. Its expectation over groups is KL(policy || model) plus a constant, whatever behavior
    drew them, if it can produce what the policy can.

    Args:
        samples: Completions of the behavior, in nats, and their rewards: the log-odds of a
            preference model, `sigmoid(reward(y) - reward(y'))` being the probability that y wins.
        gamma: Sharpness of the preferences, as in `pmle`. A small gamma asks for a more peaked
            policy.

    Returns:
        Loss of each group, in nats, up to a constant, not reduced.

    Differs from the paper:
        The importance ratio, which is 1 on samples of the current policy, lets a sample be used
        for more than one step; from 10 nats on it is its tangent line. The baseline is ours.

    Source:
        Yun et al. 2025, arXiv:2506.01523, reverse-KL minimization; the link as in `pmle`.
    """
    policy, behavior = samples.completions.policy, samples.behavior_sums
    target = samples.rewards / gamma
    baseline = leave_one_out_mean(behavior - target, samples.present)
    ratio = importance_ratio(samples.behavior_log_ratio.sum(dim=-1))
    return group_mean(ratio * (policy - target - baseline), samples.present)


def reverse_kl_optimum(problem: FiniteProblem, *, gamma: Positive = 0.1) -> Float[Tensor, " Y"]:
    """The law proportional to `exp(reward / gamma)`; the reference has no part in it."""
    assert problem.reward is not None, "a reward is fitted"
    return tilted_reference(
        problem.reward.new_zeros(problem.num_completions), problem.reward / gamma
    )


CARD = Card(
    loss=reverse_kl_loss,
    data=SampledLogProbs,
    source="arXiv:2506.01523, reverse-KL minimization",
    title="reverse KL to the model behind the preferences",
    target="the law proportional to exp(reward / gamma), whatever the reference",
    optimum=reverse_kl_optimum,
    needs_reference=False,
    reward_scale="gamma",
)
