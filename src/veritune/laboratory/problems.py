"""Makers of finite problems: data that follow a reward, that follow none, that are labelled."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.objectives.optimum import FiniteProblem
from veritune.seeds import stream


def bradley_terry_problem(num_completions: int, seed: int) -> FiniteProblem:
    """Pairs from the reference, compared by a random reward.

        P(y is preferred to y') = sigmoid(reward(y) - reward(y'))

    Rewards and the reference's logits are standard normal.
    """
    generator = stream(seed, "laboratory", "bradley-terry")
    reference = _random_law(num_completions, generator)
    reward = torch.randn(num_completions, generator=generator, dtype=torch.float64)
    return FiniteProblem(
        reference=reference,
        reward=reward,
        preferences=torch.sigmoid(reward[:, None] - reward[None, :]),
        pair_law=independent_pairs(reference),
    )


def cyclic_problem(num_completions: int, seed: int, *, strength: float = 2.0) -> FiniteProblem:
    """Pairs from the reference, compared around a circle: no reward explains the preferences.

    Completions stand at equal distances on a circle, and each is preferred to those on the half
    circle behind it: P(i is preferred to j) = sigmoid(strength * sin(2 pi (i - j) / Y)).

    Args:
        num_completions: At least 3.
        seed: Of the reference, whose logits are standard normal.
        strength: Log-odds of the clearest preference.
    """
    assert num_completions >= 3, "a cycle has at least three members"
    generator = stream(seed, "laboratory", "cyclic")
    reference = _random_law(num_completions, generator)
    place = torch.arange(num_completions, dtype=torch.float64)
    angle = 2 * math.pi * (place[:, None] - place[None, :]) / num_completions
    return FiniteProblem(
        reference=reference,
        preferences=torch.sigmoid(strength * torch.sin(angle)),
        pair_law=independent_pairs(reference),
    )


def mixture_problem(num_completions: int, seed: int, *, desirable_fraction: float) -> FiniteProblem:
    """Completions of the reference with a label each: the reference is the mixture of both laws.

        reference = desirable_fraction * p+ + (1 - desirable_fraction) * p-

    The logits of p+ and p- are standard normal.
    """
    generator = stream(seed, "laboratory", "mixture")
    desirable = _random_law(num_completions, generator)
    undesirable = _random_law(num_completions, generator)
    return FiniteProblem(
        reference=mixture(desirable, undesirable, desirable_fraction),
        desirable=desirable,
        undesirable=undesirable,
        desirable_fraction=desirable_fraction,
    )


def mixture(
    desirable: Float[Tensor, " Y"], undesirable: Float[Tensor, " Y"], desirable_fraction: float
) -> Float[Tensor, " Y"]:
    """Log-probabilities of `fraction * p+ + (1 - fraction) * p-`."""
    return torch.logaddexp(
        desirable + math.log(desirable_fraction), undesirable + math.log1p(-desirable_fraction)
    )


def independent_pairs(behavior: Float[Tensor, " Y"]) -> Float[Tensor, "Y Y"]:
    """Probability of each ordered pair when both places are drawn from one law."""
    return torch.outer(behavior.exp(), behavior.exp())


def _random_law(num_completions: int, generator: torch.Generator) -> Float[Tensor, " Y"]:
    logits = torch.randn(num_completions, generator=generator, dtype=torch.float64)
    return torch.log_softmax(logits, dim=-1)
