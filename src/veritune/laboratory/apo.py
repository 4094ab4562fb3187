"""APO: accelerated preference optimization, over all data of a finite problem.

A round of preference optimization with the last policy as its reference is a proximal step; the
method carries each one further in the direction in which the one before it went.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.minimize import Minimum, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import independent_pairs
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.paired.dpo import dpo_loss
from veritune.ranges import Fraction, Positive

ProximalStep = Callable[[Float[Tensor, " Y"]], Float[Tensor, " Y"]]
"""From the log-probabilities of the reference of a round to those of the policy it ends at."""


@dataclass(frozen=True)
class AcceleratedRun:
    """The policies of T rounds; row 0 of both is the reference."""

    proximal: Float[Tensor, "rows Y"]
    """Log-probabilities after the proximal step of each round; the last row is the result."""

    extrapolated: Float[Tensor, "rows Y"]
    """Log-probabilities after the extrapolation, from which the next round's data are drawn."""


def exact_proximal_step(
    problem: FiniteProblem, current: Float[Tensor, " Y"], *, beta: Positive
) -> Float[Tensor, " Y"]:
    """Where a round ends, in closed form: `current * exp(reward / beta)`, normalized.

    Source:
        He, Yuan and Gu 2024, arXiv:2410.06293, the proximal view of DPO under Bradley-Terry.
    """
    assert problem.reward is not None, "the step is known where preferences follow a reward"
    return tilted_reference(current, problem.reward / beta)


def minimized_proximal_step(
    problem: FiniteProblem, current: Float[Tensor, " Y"], *, beta: Positive
) -> Minimum:
    """Where a round ends, by minimizing the loss of DPO over all pairs drawn from `current`.

        argmin over policies of E[-log sigmoid(beta * (log_ratio(chosen) - log_ratio(rejected)))]

    The reference of the log-ratios is `current`. It searches the whole simplex, and reads the
    preferences and not the reward.

    Source:
        He, Yuan and Gu 2024, arXiv:2410.06293, a round with the loss of DPO.
    """
    round_problem = dataclasses.replace(
        problem, reference=current, pair_law=independent_pairs(current)
    )
    return minimize(population_loss(dpo_loss, round_problem, beta=beta), current)


def extrapolated(
    proximal: Float[Tensor, " Y"], previous: Float[Tensor, " Y"], *, alpha: Fraction
) -> Float[Tensor, " Y"]:
    """The policy carried on in the direction of the last two proximal ones.

        extrapolated(y) proportional to proximal(y) * (proximal(y) / previous(y))^alpha

    Source:
        He, Yuan and Gu 2024, arXiv:2410.06293, the extrapolation step.
    """
    return torch.log_softmax(proximal + alpha * (proximal - previous), dim=-1)


def accelerated_run(
    reference: Float[Tensor, " Y"], step: ProximalStep, *, alpha: Fraction, num_rounds: int
) -> AcceleratedRun:
    """All policies of accelerated preference optimization; `alpha=0` is iterated DPO.

        proximal_{t+1}     = step(extrapolated_t)
        extrapolated_{t+1} proportional to proximal_{t+1} * (proximal_{t+1} / proximal_t)^alpha

    Args:
        reference: Log-probabilities of the first reference.
        step: `exact_proximal_step` or `minimized_proximal_step` of a problem.
        alpha: Strength of the extrapolation, below 1.
        num_rounds: Proximal steps.

    Source:
        He, Yuan and Gu 2024, arXiv:2410.06293.
    """
    proximal, ahead = [reference], [reference]
    for _ in range(num_rounds):
        proximal.append(step(ahead[-1]))
        ahead.append(extrapolated(proximal[-1], proximal[-2], alpha=alpha))
    return AcceleratedRun(torch.stack(proximal), torch.stack(ahead))


def accelerated_policy(
    reference: Float[Tensor, " Y"],
    rewards: Float[Tensor, "T Y"],
    *,
    beta: Positive,
    alpha: Fraction,
) -> Float[Tensor, " Y"]:
    """The result of T exact rounds in closed form: the reference tilted by a sum of rewards.

        proximal_T proportional to reference * exp(sum over t from 1 to T of m_t * r_t / beta)
        m_t = (1 - alpha^(T + 1 - t)) / (1 - alpha)

    An early reward counts almost `1 / (1 - alpha)` times, the last one once.

    Args:
        reference: Log-probabilities of the first reference.
        rewards: Of each round; T equal rows where the reward does not change.
        beta: Of every proximal step.
        alpha: Strength of the extrapolation, below 1.

    Source:
        He, Yuan and Gu 2024, arXiv:2410.06293, the closed form of the iterates.
    """
    assert alpha < 1, "at 1 the sum has another form"
    exponent = torch.arange(len(rewards), 0, -1, dtype=rewards.dtype)
    multiple = (1 - alpha**exponent) / (1 - alpha)
    return tilted_reference(reference, multiple @ rewards / beta)


def distance_to_best(run: AcceleratedRun, problem: FiniteProblem) -> Float[Tensor, " rows"]:
    """Total variation between each proximal policy and the best completion: what it gives others.

    distance_t = 1 - proximal_t(best) = sum over the other completions of proximal_t(y)
    """
    assert problem.reward is not None, "the best completion is that of the largest reward"
    others = torch.arange(problem.num_completions) != problem.reward.argmax()
    # Summed, not subtracted from 1, so that small distances keep their digits.
    return run.proximal[:, others].exp().sum(dim=-1)


def predicted_decay(problem: FiniteProblem, *, beta: Positive, alpha: Fraction) -> float:
    """What one round adds, in the limit of many, to the logarithm of the distance to the best.

        decay = -gap / (beta * (1 - alpha)),      gap = largest reward - second largest reward

    Each round tilts by `reward / beta` times a multiple that tends to `1 / (1 - alpha)`, and the
    runner-up is the last to fade.

    Source:
        He, Yuan and Gu 2024, arXiv:2410.06293, the exponential rate under a reward gap.
    """
    assert problem.reward is not None, "the gap is one of rewards"
    best, second = problem.reward.topk(2).values
    return -float(best - second) / (beta * (1 - alpha))
