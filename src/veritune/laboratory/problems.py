"""Makers of finite problems: data that follow a reward, that follow none, that are labelled."""

import dataclasses
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


def deterministic_problem(num_completions: int, seed: int) -> FiniteProblem:
    """Pairs from the reference in which the completion of larger reward always wins.

    The rewards are those of `bradley_terry_problem` with the same seed.
    """
    problem = bradley_terry_problem(num_completions, seed)
    assert problem.reward is not None, "a Bradley-Terry problem has a reward"
    difference = problem.reward[:, None] - problem.reward[None, :]
    return dataclasses.replace(problem, preferences=(difference.sign() + 1) / 2)


def noisy_problem(num_completions: int, seed: int, *, noise: float) -> FiniteProblem:
    """The deterministic problem with each label flipped with this probability, below one half."""
    return with_flipped_labels(deterministic_problem(num_completions, seed), noise)


def with_flipped_labels(problem: FiniteProblem, rate: float) -> FiniteProblem:
    """The same problem where each label is flipped with this probability; its reward stays."""
    assert problem.preferences is not None, "labels of pairs are flipped"
    flipped = (1 - rate) * problem.preferences + rate * (1 - problem.preferences)
    return dataclasses.replace(problem, preferences=flipped)


def disjoint_problem(
    num_completions: int, seed: int, *, desirable_fraction: float, overlap: float
) -> FiniteProblem:
    """Labels that nearly tell completions apart: each class has a half of them for its own.

    The reference is the mixture of both laws.

    Args:
        num_completions: An even number.
        seed: Of both laws.
        desirable_fraction: Share of desirable examples.
        overlap: Probability that each class gives to the half of the other; 0 shares nothing.
    """
    assert num_completions % 2 == 0, "each class has a half of the completions"
    problem = mixture_problem(num_completions, seed, desirable_fraction=desirable_fraction)
    assert problem.desirable is not None, "a mixture has two laws"
    assert problem.undesirable is not None, "a mixture has two laws"
    own = torch.arange(num_completions) < num_completions // 2
    laws = []
    for law, is_own in ((problem.desirable, own), (problem.undesirable, ~own)):
        inside = law.masked_fill(~is_own, -torch.inf).log_softmax(dim=0).exp()
        outside = law.masked_fill(is_own, -torch.inf).log_softmax(dim=0).exp()
        laws.append(((1 - overlap) * inside + overlap * outside).log())
    return dataclasses.replace(
        problem,
        reference=mixture(laws[0], laws[1], desirable_fraction),
        desirable=laws[0],
        undesirable=laws[1],
    )


def sampled_problem(
    problem: FiniteProblem, num_examples: int, generator: torch.Generator
) -> FiniteProblem:
    """The problem as n examples show it: its data laws are replaced by empirical ones.

    Pairs: n of them, drawn from the pair law and labelled by the preferences. Labels: n desirable
    and n undesirable completions; the reference stays, and so does the fraction.
    """
    if problem.preferences is not None:
        assert problem.pair_law is not None, "pairs have a law"
        joint = (problem.pair_law + problem.pair_law.T) * problem.preferences
        counts = _counts(joint.flatten(), num_examples, generator).view_as(joint)
        both = counts + counts.T
        wins = torch.where(both > 0, counts / both.clamp(min=1), 0.5)
        return dataclasses.replace(problem, preferences=wins, pair_law=both / (2 * num_examples))
    assert problem.desirable is not None, "labels have two laws"
    assert problem.undesirable is not None, "labels have two laws"
    return dataclasses.replace(
        problem,
        desirable=(_counts(problem.desirable.exp(), num_examples, generator) / num_examples).log(),
        undesirable=(
            _counts(problem.undesirable.exp(), num_examples, generator) / num_examples
        ).log(),
    )


def _counts(law: Float[Tensor, " M"], num_draws: int, generator: torch.Generator) -> Tensor:
    """How often each outcome comes up in n independent draws, float64."""
    drawn = torch.multinomial(law, num_draws, replacement=True, generator=generator)
    return torch.bincount(drawn, minlength=len(law)).to(torch.float64)
