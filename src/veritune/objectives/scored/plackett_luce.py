"""Plackett-Luce DPO: direct preference optimization on rankings."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.ranges import Positive


def plackett_luce_loss(groups: ScoredLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the ranking by score under implicit rewards.

    A ranking is built from the top: each place is won, among all that are left, in proportion to
    the exponential of the implicit reward. Only the order of the scores counts. Two completions are
    a pair, and the loss is that of `dpo`; a group of one has loss and gradient zero.

        loss = sum over i of (logsumexp over {j: score(j) <= score(i)} of beta * log_ratio(j)
                              - beta * log_ratio(i))

    The last place contributes zero. Completions of equal score each stand among those that were
    left when the other won, which is Breslow's treatment of ties: two that share a score are pulled
    together.

    Args:
        groups: B groups of up to K scored completions; log-probabilities in nats, summed over
            tokens. Absent entries are not read.
        beta: Weight of the KL penalty in the problem that DPO solves. A small beta lets the optimum
            move far from the reference.

    Returns:
        Loss of each group, in nats, not reduced; it grows with the number of completions.

    Differs from the paper:
        The paper has rankings without ties.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290, appendix A.3; ties as in Breslow 1974, "Covariance
        analysis of censored survival data".
    """
    present = groups.present
    reward = beta * groups.completions.log_ratio.where(present, 0)
    is_left = groups.scores[:, None, :] <= groups.scores[:, :, None]
    is_left = is_left & present[:, None, :] & present[:, :, None]
    # An absent completion is left with itself alone, whose term is zero: a sum over nothing would
    # be -inf, without a gradient.
    is_left = is_left | torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    left = reward[:, None, :].masked_fill(~is_left, -torch.inf).logsumexp(dim=-1)
    return (left - reward).sum(dim=-1)


def plackett_luce_optimum(problem: FiniteProblem, *, beta: Positive = 0.1) -> Float[Tensor, " Y"]:
    """The reference tilted by the reward that rankings follow, whichever groups are ranked."""
    assert problem.reward is not None, "the optimum is known where rankings follow a reward"
    return tilted_reference(problem.reference, problem.reward / beta)


def plackett_luce_initial_loss(
    groups: ScoredLogProbs, *, beta: Positive = 0.1
) -> Float[Tensor, " B"]:
    """`log(K!)` without ties: at each place, the logarithm of how many are left."""
    present = groups.present
    is_left = groups.scores[:, None, :] <= groups.scores[:, :, None]
    num_left = (is_left & present[:, None, :]).sum(dim=-1).clamp(min=1)
    return num_left.to(groups.scores.dtype).log().where(present, 0).sum(dim=-1)


CARD = Card(
    loss=plackett_luce_loss,
    data=ScoredLogProbs,
    source="arXiv:2305.18290, appendix A.3",
    title="direct preference optimization on rankings",
    target="the reference tilted by exp(reward / beta), if rankings are drawn by Plackett-Luce",
    optimum=plackett_luce_optimum,
    initial_loss=plackett_luce_initial_loss,
    reward_scale="beta",
)
