"""EXO on scored groups: efficient exact optimization of a reward."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.scored.group_laws import group_law
from veritune.ranges import Positive


def exo_rw_loss(
    groups: ScoredLogProbs, *, beta_pi: Positive = 0.5, beta_r: Positive = 0.5
) -> Float[Tensor, " B"]:
    """Reverse KL, over the completions of a group, from the policy's law to the reward's law.

    The completions are taken to be drawn from the reference. The error against the reverse KL over
    all completions shrinks as 1/K: with one pair per prompt the method is not yet mode-seeking,
    with eight completions it is. A group of one completion has loss and gradient zero.

        p_policy(i) = softmax over the group of (beta_pi * log_ratio(i))
        p_reward(i) = softmax over the group of (score(i) / beta_r)
        loss        = sum over i of p_policy(i) * (log p_policy(i) - log p_reward(i))

    Args:
        groups: B groups of up to K scored completions; log-probabilities in nats, summed over
            tokens. Absent entries are not read.
        beta_pi: Tempers the policy: what is fitted is proportional to
            policy^beta_pi * reference^(1 - beta_pi). A small one asks for larger log-ratios.
        beta_r: Temperature of the scores, in their unit. A small one favors the best of the group.

    Returns:
        Loss of each group, in nats, not reduced.

    Source:
        Ji et al. 2024, arXiv:2402.00856, the reward form; released settings 0.1 (IMDB) and 0.5
        (TL;DR, Anthropic HH) for both hyper-parameters.
    """
    log_policy = group_law(beta_pi * groups.completions.log_ratio, groups.present)
    log_reward = group_law(groups.scores / beta_r, groups.present)
    # Both laws are zero at absent entries, and so is their term.
    return (torch.exp(log_policy) * (log_policy - log_reward)).sum(dim=-1)


def exo_rw_optimum(
    problem: FiniteProblem, *, beta_pi: Positive = 0.5, beta_r: Positive = 0.5
) -> Float[Tensor, " Y"]:
    """The reference tilted by the reward over the product of the two temperatures, at any K > 1."""
    assert problem.reward is not None, "scores are a reward"
    return tilted_reference(problem.reference, problem.reward / (beta_r * beta_pi))


def exo_rw_initial_loss(
    groups: ScoredLogProbs, *, beta_pi: Positive = 0.5, beta_r: Positive = 0.5
) -> Float[Tensor, " B"]:
    """KL from the uniform law of the group to the reward's law.

    loss = logsumexp(score / beta_r) - mean(score / beta_r) - log(number of completions)
    """
    scores = groups.scores / beta_r
    count = groups.present.sum(dim=-1).clamp(min=1)
    total = scores.masked_fill(~groups.present, -torch.inf).logsumexp(dim=-1)
    mean = scores.where(groups.present, 0).sum(dim=-1) / count
    return (total - mean - count.to(scores.dtype).log()).where(groups.present.any(dim=-1), 0)


CARD = Card(
    loss=exo_rw_loss,
    data=ScoredLogProbs,
    source="arXiv:2402.00856, reward form",
    title="efficient exact optimization of a reward",
    target="the reference tilted by exp(reward / (beta_r * beta_pi))",
    optimum=exo_rw_optimum,
    initial_loss=exo_rw_initial_loss,
    reward_scale="beta_pi",
)
