"""Groups of completions drawn from the reference: all of them as multisets, some, or the limit.

An objective on scored groups does not depend on the order within a group, so that groups of K
completions are multisets, and the weight of one is multinomial. There are far fewer of them than
the Y^K ordered groups.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import torch
from jaxtyping import Float, Int
from torch import Tensor

from veritune.laboratory.population import PopulationLoss
from veritune.logprobs import CompletionLogProbs, ScoredLogProbs
from veritune.objectives.optimum import FiniteProblem


@dataclass(frozen=True)
class GroupDraws:
    """Groups of K completions, with the probability or the frequency of each."""

    which: Int[Tensor, "B K"]
    """The completions of each group, as indices; one may be in a group several times."""

    weight: Float[Tensor, " B"]
    """Sums to one."""


def every_group(reference: Float[Tensor, " Y"], group_size: int) -> GroupDraws:
    """Every multiset of `group_size` independent draws, with its multinomial probability.

        weight = K! / product over y of count(y)! * product over y of reference(y)^count(y)

    There are `(K + Y - 1)! / (K! (Y - 1)!)` of them.

    Args:
        reference: Log-probabilities of the law that groups are drawn from.
        group_size: Completions in a group, K.
    """
    which = _multisets(len(reference), group_size)
    counts = reference.new_zeros(len(which), len(reference))
    counts = counts.scatter_add(1, which, reference.new_ones(which.shape))
    log_orders = math.lgamma(group_size + 1) - torch.lgamma(counts + 1).sum(dim=1)
    return GroupDraws(which, torch.exp(log_orders + reference[which].sum(dim=1)))


def _multisets(num_completions: int, group_size: int) -> Int[Tensor, "B K"]:
    if group_size < num_completions:
        rows = combinations_with_replacement(range(num_completions), group_size)
        return torch.tensor(list(rows)).view(-1, group_size)
    # A multiset is where the Y - 1 bars stand in a row of K stars and Y - 1 bars: fewer numbers
    # than members where groups are large.
    last = group_size + num_completions - 1
    places = combinations(range(last), num_completions - 1)
    counts = torch.tensor([(-1, *bars, last) for bars in places]).diff(dim=1) - 1
    which = torch.arange(num_completions).repeat(len(counts)).repeat_interleave(counts.flatten())
    return which.view(len(counts), group_size)


def drawn_groups(
    reference: Float[Tensor, " Y"], group_size: int, num_groups: int, generator: torch.Generator
) -> GroupDraws:
    """A sample of groups, all of the same weight: for laws with too many completions to list."""
    drawn = torch.multinomial(
        reference.exp(), num_groups * group_size, replacement=True, generator=generator
    )
    weight = torch.full((num_groups,), 1 / num_groups, dtype=reference.dtype)
    return GroupDraws(drawn.view(num_groups, group_size), weight)


def proportional_group(counts: Int[Tensor, " Y"]) -> GroupDraws:
    """One group that holds each completion as often as these counts say.

    Where the reference is proportional to the counts this is what ever larger groups tend to, so
    the loss on it is the limit for K to infinity, without sampling error.
    """
    which = torch.arange(len(counts)).repeat_interleave(counts)
    return GroupDraws(which[None], torch.ones(1, dtype=torch.float64))


def expected_group_loss(
    loss: Callable[..., Tensor],
    problem: FiniteProblem,
    groups: GroupDraws,
    **hyperparameters: float,
) -> PopulationLoss:
    """The mean over groups of a loss on scored groups, as a function of the policy.

    Args:
        loss: A loss of the catalog on scored groups.
        problem: Holds reference and reward.
        groups: What it is averaged over.
        hyperparameters: Of the loss.
    """
    assert problem.reward is not None, "scores are a reward"
    return expected_scored_loss(
        loss, problem, groups, problem.reward[groups.which], **hyperparameters
    )


def expected_scored_loss(
    loss: Callable[..., Tensor],
    problem: FiniteProblem,
    groups: GroupDraws,
    scores: Float[Tensor, "B K"],
    **hyperparameters: float,
) -> PopulationLoss:
    """The same with a score for each place of each group, whatever it comes from.

    Args:
        loss: A loss of the catalog on scored groups.
        problem: Holds the reference.
        groups: What it is averaged over.
        scores: Of the completions of each group.
        hyperparameters: Of the loss.
    """
    which = groups.which

    def expected_loss(policy: Float[Tensor, " Y"]) -> Float[Tensor, ""]:
        data = ScoredLogProbs(
            completions=CompletionLogProbs(
                policy=policy[which],
                length=torch.ones_like(which),
                reference=problem.reference[which],
            ),
            scores=scores,
            present=torch.ones_like(which, dtype=torch.bool),
        )
        return (groups.weight * loss(data, **hyperparameters)).sum()

    return expected_loss
