"""RLOO: policy gradient with a leave-one-out baseline, on KL-regularized rewards."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import SampledLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.sampled.importance import importance_ratio, leave_one_out_mean
from veritune.ranges import Positive


def rloo_loss(samples: SampledLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """Policy gradient of RLHF's objective with the other samples of the group as the baseline.

    The whole completion is one action. The KL penalty is part of the reward, taken from the
    behavior, so on samples of the current policy the gradient is, in expectation, that of
    `E[reward] - beta * KL(policy || reference)`. Once the policy has moved away from the behavior
    the value has no minimum of its own: take new samples.

        regularized(i) = reward(i) - beta * (behavior(i) - reference(i))
        advantage(i)   = regularized(i) - mean over the others of regularized
        loss           = -mean over i of exp(policy(i) - behavior(i)) * advantage(i)

    A group of one completion has no baseline, which is REINFORCE.

    Args:
        samples: Completions of the behavior, in nats, and their rewards.
        beta: Weight of the KL penalty, in units of reward per nat.

    Returns:
        Loss of each group, in units of reward, not reduced.

    Differs from the paper:
        The importance ratio, which is 1 on samples of the current policy; from 10 nats on it is
        its tangent line.

    Source:
        Ahmadian et al. 2024, arXiv:2402.14740, eq. for the RLOO estimator; the baseline is that of
        Kool, van Hoof and Welling 2019.
    """
    completions, behavior = samples.completions, samples.behavior_sums
    assert completions.reference is not None, "the KL penalty has a reference"
    regularized = samples.rewards - beta * (behavior - completions.reference)
    advantage = regularized - leave_one_out_mean(regularized, samples.present)
    ratio = importance_ratio(samples.behavior_log_ratio.sum(dim=-1))
    return group_mean(-ratio * advantage, samples.present)


def rloo_optimum(problem: FiniteProblem, *, beta: Positive = 0.1) -> Float[Tensor, " Y"]:
    """The reference tilted by the reward: where the expected gradient on fresh samples is zero."""
    assert problem.reward is not None, "a reward is maximized"
    return tilted_reference(problem.reference, problem.reward / beta)


CARD = Card(
    loss=rloo_loss,
    data=SampledLogProbs,
    source="arXiv:2402.14740",
    title="policy gradient with a leave-one-out baseline",
    target="the reference tilted by exp(reward / beta), reached by steps on fresh samples",
    elsewhere="RLOOTrainer of TRL",
    optimum=rloo_optimum,
    reward_scale="beta",
)
