"""DPO on scored groups: the forward-KL counterpart of EXO."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.scored.group_laws import group_law
from veritune.ranges import Positive


def dpo_rw_loss(
    groups: ScoredLogProbs, *, beta_pi: Positive = 0.5, beta_r: Positive = 0.5
) -> Float[Tensor, " B"]:
    """Cross-entropy, over the completions of a group, of the policy's law under the reward's law.

    Up to a constant it is the forward KL, where `exo_rw` is the reverse KL: it covers all that
    scores well rather than the best of it, and the two differ only when the policy cannot
    represent the optimum. A group of one completion has loss and gradient zero.

        p_policy(i) = softmax over the group of (beta_pi * log_ratio(i))
        p_reward(i) = softmax over the group of (score(i) / beta_r)
        loss        = -sum over i of p_reward(i) * log p_policy(i)

    Args:
        groups: B groups of up to K scored completions; log-probabilities in nats, summed over
            tokens. Absent entries are not read.
        beta_pi: How much of a log-ratio counts as reward. A small one asks for larger log-ratios.
        beta_r: Temperature of the scores, in their unit. A small one favors the best of the group.

    Returns:
        Loss of each group, in nats, not reduced.

    Source:
        Ji et al. 2024, arXiv:2402.00856, the generalization of DPO to rewards (DPO-rw).
    """
    log_policy = group_law(beta_pi * groups.completions.log_ratio, groups.present)
    log_reward = group_law(groups.scores / beta_r, groups.present)
    # The policy's law is zero at absent entries, and so is their term.
    return -(torch.exp(log_reward) * log_policy).sum(dim=-1)


def dpo_rw_optimum(
    problem: FiniteProblem, *, beta_pi: Positive = 0.5, beta_r: Positive = 0.5
) -> Float[Tensor, " Y"]:
    """The reference tilted by the reward over the product of the two temperatures, at any K > 1."""
    assert problem.reward is not None, "scores are a reward"
    return tilted_reference(problem.reference, problem.reward / (beta_r * beta_pi))


def dpo_rw_initial_loss(
    groups: ScoredLogProbs, *, beta_pi: Positive = 0.5, beta_r: Positive = 0.5
) -> Float[Tensor, " B"]:
    """The logarithm of the number of completions in the group: the policy's law is uniform."""
    count = groups.present.sum(dim=-1).clamp(min=1)
    return count.to(groups.scores.dtype).log()


CARD = Card(
    loss=dpo_rw_loss,
    data=ScoredLogProbs,
    source="arXiv:2402.00856, DPO-rw",
    title="direct preference optimization on scores",
    target="the reference tilted by exp(reward / (beta_r * beta_pi))",
    optimum=dpo_rw_optimum,
    initial_loss=dpo_rw_initial_loss,
    reward_scale="beta_pi",
)
