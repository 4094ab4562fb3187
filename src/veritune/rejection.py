"""Rejection sampling: of many candidates of a prompt, a few that follow the tilted law.

Candidates are drawn from a policy and valued by rewards. Those kept look as if they were drawn from
the law proportional to `policy * exp(reward / beta)`, the optimum of KL-regularized reward. They
are known by their index: two candidates with the same text are two candidates.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from veritune.errors import DataError, SettingsError
from veritune.ranges import NonNegativeInt, Positive


def accepted(
    rewards: Float[Tensor, " N"],
    *,
    beta: Positive,
    num_wanted: NonNegativeInt,
    generator: torch.Generator,
) -> Int[Tensor, " M"]:
    """Indices of the M candidates wanted, in the order in which they were accepted, none twice.

    Passes over the candidates that are left are repeated until enough are accepted:

        max_reward = largest reward among those that are left at the start of the pass
        each of them is accepted with probability exp((reward - max_reward) / beta)
        whatever is accepted is removed

    Every pass accepts at least its best candidate, so there is an end. The bound on rewards comes
    from the draws themselves and few candidates are left in the end, so the accepted follow the
    tilted law only nearly; `accepted_in_one_round` is exact.

    Args:
        rewards: Of N candidates drawn from one policy.
        beta: As it goes to 0 the best of N are kept, in order; as it grows, a uniform choice.
        num_wanted: At most N.
        generator: Of the draws.

    Returns:
        Indices into `rewards`.

    Raises:
        SettingsError: More are wanted than there are candidates.
        DataError: A reward is not a finite number.

    Differs from the paper:
        Candidates are a set there and are keyed by text, so equal texts collapse into one; here
        they stay apart. Each pass goes through them in random order, so that nothing depends on
        the order in which they are listed when the last pass is cut short.

    Source:
        Liu et al. 2023, arXiv:2309.06657, the algorithm of repeated passes.
    """
    _check_finite(rewards)
    if num_wanted > len(rewards):
        raise SettingsError(
            f"more candidates are wanted than the {len(rewards)} that there are",
            got=num_wanted,
            why="every candidate is accepted at most once",
            fix="draw more candidates of each prompt, or want fewer",
        )
    assert beta > 0, "at a temperature of 0 no probability of acceptance is defined"
    found: list[int] = []
    left = torch.arange(len(rewards))
    values = rewards.detach().to("cpu", torch.float64)
    while len(found) < num_wanted:
        left = left[torch.randperm(len(left), generator=generator)]
        taken = _draw((values[left] - values[left].max()) / beta, generator)
        found += left[taken].tolist()
        left = left[~taken]
    return torch.tensor(found[:num_wanted], dtype=torch.long)


def accepted_in_one_round(
    rewards: Float[Tensor, " N"],
    *,
    beta: Positive,
    max_reward: float,
    generator: torch.Generator,
) -> Bool[Tensor, " N"]:
    """True for the candidates accepted in one pass with a bound on rewards that is fixed.

        probability of acceptance = exp((reward - max_reward) / beta)

    The law of an accepted candidate is exactly `tilted_law`, for any bound; a higher bound only
    accepts fewer. How many are accepted is random.

    Args:
        rewards: Of N candidates drawn from one policy.
        beta: Temperature of the tilt, in units of reward.
        max_reward: A bound that does not depend on these draws, at least every reward.
        generator: Of the draws.

    Raises:
        DataError: A reward is above the bound, or is not a finite number.

    Source:
        Liu et al. 2023, arXiv:2309.06657, the rejection step.
    """
    _check_finite(rewards)
    values = rewards.detach().to("cpu", torch.float64)
    largest = float(values.max()) if len(values) else -math.inf
    if largest > max_reward:
        raise DataError(
            f"a reward is above the bound of {max_reward}",
            got=largest,
            why="a probability of acceptance above 1 cannot be drawn, and the law would be wrong",
            fix="use a bound that no reward exceeds",
        )
    return _draw((values - max_reward) / beta, generator)


def tilted_law(
    policy: Float[Tensor, " Y"], rewards: Float[Tensor, " Y"], *, beta: Positive
) -> Float[Tensor, " Y"]:
    """Log-probabilities of an accepted candidate: `policy * exp(reward / beta)`, normalized.

    Args:
        policy: Log-probabilities of all candidates that the policy can draw, in nats.
        rewards: Of each of them.
        beta: A small one moves far towards high rewards.

    Source:
        Liu et al. 2023, arXiv:2309.06657, the optimal policy of the regularized reward.
    """
    return torch.log_softmax(policy + rewards / beta, dim=-1)


def expected_acceptance(
    policy: Float[Tensor, " Y"],
    rewards: Float[Tensor, " Y"],
    *,
    beta: Positive,
    max_reward: float,
) -> float:
    """Probability that a candidate drawn from the policy is accepted in one round.

        acceptance = sum over y of policy(y) * exp((reward(y) - max_reward) / beta)

    Its inverse is how many candidates one accepted candidate costs.

    Source:
        Liu et al. 2023, arXiv:2309.06657, the rejection step.
    """
    return float(torch.logsumexp(policy + (rewards - max_reward) / beta, dim=-1).exp())


def _draw(log_probability: Tensor, generator: torch.Generator) -> Tensor:
    # The uniform number is below 1, so a probability of 1 always accepts.
    uniform = torch.rand(log_probability.shape, generator=generator, dtype=torch.float64)
    return uniform < log_probability.exp()


def _check_finite(rewards: Tensor) -> None:
    wrong = (~rewards.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            "a reward is not a finite number",
            where=f"candidate {wrong[0]}",
            got=float(rewards[wrong[0]]),
            why="a candidate without a value can neither be accepted nor rejected",
            fix="leave out the candidates that could not be scored",
        )
