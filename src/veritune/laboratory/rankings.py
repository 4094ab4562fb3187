"""Rankings drawn by Plackett-Luce: every order of every group, with its probability."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, permutations

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.group_draws import GroupDraws, expected_scored_loss
from veritune.laboratory.population import PopulationLoss
from veritune.objectives.optimum import FiniteProblem


@dataclass(frozen=True)
class Rankings(GroupDraws):
    """Groups of completions in an order, the best first, with the probability of each."""


def every_ranking(groups: GroupDraws, reward: Float[Tensor, " Y"]) -> Rankings:
    """Every order of every group, drawn from the top by Plackett-Luce.

        probability of an order = product over places i of
            exp(reward(i)) / sum over places j >= i of exp(reward(j))

    There are K! orders of a group. A completion that is in a group twice changes places with itself
    in two of them, each of which counts.

    Args:
        groups: What is ranked, whatever law it was drawn from.
        reward: Of each completion, in nats.
    """
    group_size = groups.which.shape[1]
    orders = torch.tensor(list(permutations(range(group_size))))
    which = groups.which[:, orders].flatten(end_dim=1)
    strength = reward[which]
    # From the last place to the first; only the sum over places is needed.
    left = strength.flip(1).logcumsumexp(dim=1)
    probability = torch.exp(strength.sum(dim=1) - left.sum(dim=1))
    return Rankings(which, groups.weight.repeat_interleave(len(orders)) * probability)


def expected_ranking_loss(
    loss: Callable[..., Tensor],
    problem: FiniteProblem,
    rankings: Rankings,
    **hyperparameters: float,
) -> PopulationLoss:
    """The mean over rankings of a loss on scored groups, as a function of the policy.

    The scores say the order and nothing else: K - 1 for the best down to 0.

    Args:
        loss: A loss of the catalog on scored groups.
        problem: Holds the reference.
        rankings: What it is averaged over.
        hyperparameters: Of the loss.
    """
    group_size = rankings.which.shape[1]
    order = torch.arange(group_size - 1, -1, -1, dtype=rankings.weight.dtype)
    scores = order.expand(rankings.which.shape)
    return expected_scored_loss(loss, problem, rankings, scores, **hyperparameters)


def wins_in_all_pairs(rankings: Rankings, num_completions: int) -> Float[Tensor, "Y Y"]:
    """How often the row stands above the column, over all pairs of places; sums to one."""
    group_size = rankings.which.shape[1]
    return _wins(rankings, list(combinations(range(group_size), 2)), num_completions)


def wins_of_first_over_last(rankings: Rankings, num_completions: int) -> Float[Tensor, "Y Y"]:
    """How often the row is the best and the column the worst of a group; sums to one."""
    return _wins(rankings, [(0, rankings.which.shape[1] - 1)], num_completions)


def _wins(
    rankings: Rankings, places: list[tuple[int, int]], num_completions: int
) -> Float[Tensor, "Y Y"]:
    wins = rankings.weight.new_zeros(num_completions * num_completions)
    for above, below in places:
        cell = rankings.which[:, above] * num_completions + rankings.which[:, below]
        wins = wins.index_add(0, cell, rankings.weight / len(places))
    return wins.view(num_completions, num_completions)
