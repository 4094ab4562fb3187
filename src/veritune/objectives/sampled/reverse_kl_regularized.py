"""Reverse KL to the model that a reward defines, with a penalty on leaving the reference."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import SampledLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.sampled.importance import importance_ratio, leave_one_out_mean
from veritune.ranges import NonNegative, Positive


def reverse_kl_regularized_loss(
    samples: SampledLogProbs, *, gamma: Positive = 0.1, kl_weight: NonNegative = 0.1
) -> Float[Tensor, " B"]:
    """Reverse KL to the model behind the preferences plus a penalty on KL(policy || reference).

    Both divergences are of the policy, so their sum is again one reverse KL, to a geometric mean of
    model and reference.

        cost(i)  = policy(i) - reward(i) / gamma + kl_weight * log_ratio(i)
        ratio(i) = exp(policy(i) - behavior(i))
        loss     = mean over i of ratio(i) * (cost(i) - baseline(i))

    with baseline(i) the mean, over the other completions of the group, of the cost under the
    behavior.

    Args:
        samples: Completions of the behavior, in nats, and their rewards, as in `reverse_kl`.
        gamma: Sharpness of the preferences. A small gamma asks for a more peaked policy.
        kl_weight: Weight of the penalty, lambda in the paper; 0 is `reverse_kl`. A larger one
            keeps the policy nearer to the reference.

    Returns:
        Loss of each group, in nats, up to a constant, not reduced.

    Differs from the paper:
        As in `reverse_kl`.

    Source:
        Yun et al. 2025, arXiv:2506.01523, reverse-KL minimization with the reverse-KL regularizer.
    """
    completions, behavior = samples.completions, samples.behavior_sums
    assert completions.reference is not None, "the penalty has a reference"
    target = samples.rewards / gamma
    behavior_cost = behavior - target + kl_weight * (behavior - completions.reference)
    cost = completions.policy - target + kl_weight * completions.log_ratio
    baseline = leave_one_out_mean(behavior_cost, samples.present)
    ratio = importance_ratio(samples.behavior_log_ratio.sum(dim=-1))
    return group_mean(ratio * (cost - baseline), samples.present)


def reverse_kl_regularized_optimum(
    problem: FiniteProblem, *, gamma: Positive = 0.1, kl_weight: NonNegative = 0.1
) -> Float[Tensor, " Y"]:
    """Proportional to `(exp(reward / gamma) * reference^kl_weight)^(1 / (1 + kl_weight))`."""
    assert problem.reward is not None, "a reward is fitted"
    return tilted_reference(
        kl_weight / (1 + kl_weight) * problem.reference, problem.reward / (gamma * (1 + kl_weight))
    )


CARD = Card(
    loss=reverse_kl_regularized_loss,
    data=SampledLogProbs,
    source="arXiv:2506.01523, reverse-KL minimization with a reverse-KL regularizer",
    title="reverse KL to the model behind the preferences, with a KL penalty",
    target=(
        "the geometric mean of exp(reward / gamma) and the reference, with weights 1 and kl_weight"
    ),
    optimum=reverse_kl_regularized_optimum,
    reward_scale="gamma",
)
