"""Distances between laws over finitely many completions, exact.

Laws are log-probabilities in nats; `-inf` is a probability of zero.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def total_variation(first: Float[Tensor, " Y"], second: Float[Tensor, " Y"]) -> float:
    """The largest difference in probability that the two laws give to any set of completions.

    total_variation = sum over y of |first(y) - second(y)| / 2
    """
    return float((first.exp() - second.exp()).abs().sum() / 2)


def kl(first: Float[Tensor, " Y"], second: Float[Tensor, " Y"]) -> float:
    """KL(first || second) in nats; infinite where the second law lacks what the first has.

    kl = sum over y of first(y) * (log first(y) - log second(y))
    """
    probability = first.exp()
    has_mass = probability > 0
    # A completion that the first law lacks contributes 0, not 0 * -inf.
    difference = (first - second).where(has_mass, torch.zeros_like(first))
    return float((probability * difference).sum())
