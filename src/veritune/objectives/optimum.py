"""FiniteProblem: one prompt with Y possible completions, and closed forms that optima share."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class FiniteProblem:
    """One prompt, every completion, and the exact laws of the data. All tensors are float64.

    A problem holds what its kind of data has; the rest is None. Laws are log-probabilities in
    nats, and a completion of probability zero has `-inf`.
    """

    reference: Float[Tensor, " Y"]
    """Log-probabilities of the reference."""

    reward: Float[Tensor, " Y"] | None = None
    """Reward of each completion, where the data follow one."""

    preferences: Float[Tensor, "Y Y"] | None = None
    """Probability that the row is preferred to the column; one half on the diagonal."""

    pair_law: Float[Tensor, "Y Y"] | None = None
    """Probability that row and column are the pair put to comparison; sums to one."""

    desirable: Float[Tensor, " Y"] | None = None
    """Log-probabilities of desirable completions; of demonstrations, too."""

    undesirable: Float[Tensor, " Y"] | None = None
    """Log-probabilities of undesirable completions."""

    desirable_fraction: float | None = None
    """Share of desirable examples in the data, strictly between 0 and 1."""

    @property
    def num_completions(self) -> int:
        """How many completions there are, Y."""
        return len(self.reference)


def tilted_reference(
    reference: Float[Tensor, " Y"], tilt: Float[Tensor, " Y"]
) -> Float[Tensor, " Y"]:
    """Log-probabilities proportional to `reference * exp(tilt)`.

        log_probability(y) = reference(y) + tilt(y) - logsumexp(reference + tilt)

    Args:
        reference: Log-probabilities in nats.
        tilt: What is added to each, in nats; a constant added to all changes nothing.
    """
    return torch.log_softmax(reference + tilt, dim=-1)


def win_probability(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    """Probability that a completion is preferred to an opponent of the pair law.

        win(y) = sum over y' of mu(y') P(y is preferred to y')

    `mu` is the law of the second place of the pair. Where the two places are drawn independently
    from one law, it is that law.
    """
    assert problem.preferences is not None, "a win probability takes a problem with preferences"
    assert problem.pair_law is not None, "a win probability takes a problem with a pair law"
    return problem.preferences @ problem.pair_law.sum(dim=0)
