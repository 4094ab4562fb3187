"""Accelerated preference optimization: what extrapolated rounds add up to, and how fast."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.apo import (
    ProximalStep,
    accelerated_policy,
    accelerated_run,
    distance_to_best,
    exact_proximal_step,
    extrapolated,
    minimized_proximal_step,
    predicted_decay,
)
from veritune.laboratory.distances import total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.minimize import is_certified
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.rates import fitted_slope
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.optimum import FiniteProblem
from veritune.ranges import Positive
from veritune.seeds import stream

_SEEDS = (0, 1, 2)
_ALPHAS = (0.0, 0.3, 0.6)
_GAPS = (0.25, 0.5, 1.0)
_BETA = 2.0
_NUM_ROUNDS = 240


def problem_with_gap(gap: Positive, seed: int) -> FiniteProblem:
    """Six completions; the best leads by a known gap, and the others are well behind both.

    The reference's logits are standard normal. Rewards are 1, 1 - gap, and below 1/2 - gap.
    """
    drawn = bradley_terry_problem(6, seed)
    assert drawn.reward is not None, "a Bradley-Terry problem has a reward"
    reward = 0.5 - gap - drawn.reward.abs()
    reward[0], reward[1] = 1.0, 1.0 - gap
    return FiniteProblem(reference=drawn.reference, reward=reward)


def decay_per_round(distances: Float[Tensor, " rows"]) -> float:
    """Slope of the logarithm over the later half of the rounds, by least squares."""
    later = distances.log()[len(distances) // 2 :]
    place = torch.arange(len(later), dtype=later.dtype)
    centered = place - place.mean()
    return float((centered @ later) / (centered @ centered))


def rewards_add_up() -> Evidence:
    """Log-probabilities after each of nine exact rounds, with rewards that change every round."""
    residuals: list[float] = []
    controls: list[float] = []
    num_rounds = 9
    for seed in _SEEDS:
        reference = bradley_terry_problem(6, seed).reference
        generator = stream(seed, "laboratory", "rewards of rounds")
        rewards = torch.randn(num_rounds, 6, generator=generator, dtype=torch.float64)
        for alpha in _ALPHAS:
            step = _step_of_each_round(rewards)
            run = accelerated_run(reference, step, alpha=alpha, num_rounds=num_rounds)
            for rounds in range(1, num_rounds + 1):
                claimed, once = (
                    accelerated_policy(reference, rewards[:rounds], beta=_BETA, alpha=strength)
                    for strength in (alpha, 0.0)
                )
                residuals.append(float((run.proximal[rounds] - claimed).abs().max()))
                if alpha > 0 and rounds > 1:
                    controls.append(float((run.proximal[rounds] - once).abs().max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = 6, {num_rounds} rounds, alpha = 0, 0.3 and 0.6: log-probabilities differ by at most "
        f"{max(residuals):.1e} nats; from those of rounds that count once by at least "
        f"{min(controls):.2g} after the second round",
    )


def _step_of_each_round(rewards: Float[Tensor, "T Y"]) -> ProximalStep:
    """Exact steps of which each has the next of these rewards."""
    of_round = iter(rewards)

    def step(current: Float[Tensor, " Y"]) -> Float[Tensor, " Y"]:
        problem = FiniteProblem(reference=current, reward=next(of_round))
        return exact_proximal_step(problem, current, beta=_BETA)

    return step


def rounds_of_dpo_are_exact() -> Evidence:
    """Where DPO's loss, minimized anew in every round, leads."""
    residuals: list[float] = []
    controls: list[float] = []
    num_rounds = 4
    for seed in _SEEDS:
        problem = bradley_terry_problem(5, seed)
        assert problem.reward is not None, "a Bradley-Terry problem has a reward"
        rewards = problem.reward.expand(num_rounds, -1)
        for alpha in _ALPHAS:
            found, are_certified = _minimized_rounds(problem, alpha, num_rounds)
            claimed, neighbor = (
                accelerated_policy(problem.reference, rewards, beta=_BETA, alpha=strength)
                for strength in (alpha, alpha + 0.1)
            )
            residuals.append(total_variation(found, claimed) if are_certified else math.inf)
            controls.append(total_variation(found, neighbor) if are_certified else 0.0)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = 5, {num_rounds} rounds at beta = {_BETA:g}, alpha = 0, 0.3 and 0.6: TV at most "
        f"{max(residuals):.1e}, and {min(controls):.3f} or more for an alpha larger by 0.1",
    )


def _minimized_rounds(
    problem: FiniteProblem, alpha: float, num_rounds: int
) -> tuple[Float[Tensor, " Y"], bool]:
    """The result of rounds that minimize DPO's loss, and whether every one is a minimum."""
    certificates = []

    def step(current: Float[Tensor, " Y"]) -> Float[Tensor, " Y"]:
        found = minimized_proximal_step(problem, current, beta=_BETA)
        certificates.append(is_certified(found))
        return found.policy

    run = accelerated_run(problem.reference, step, alpha=alpha, num_rounds=num_rounds)
    return run.proximal[-1], all(certificates)


def decay_under_a_gap() -> Evidence:
    """Fitted decay of the distance to the best completion over what is predicted, less 1."""
    residuals: list[float] = []
    controls: list[float] = []
    drawn: list[Curve] = []
    for seed, gap in zip(_SEEDS, _GAPS, strict=True):
        problem = problem_with_gap(gap, seed)
        for alpha in _ALPHAS:
            step = partial(exact_proximal_step, problem, beta=_BETA)
            run = accelerated_run(problem.reference, step, alpha=alpha, num_rounds=_NUM_ROUNDS)
            distances = distance_to_best(run, problem)
            measured = decay_per_round(distances)
            claimed = predicted_decay(problem, beta=_BETA, alpha=alpha)
            residuals.append(abs(measured / claimed - 1))
            if alpha > 0:
                plain = predicted_decay(problem, beta=_BETA, alpha=0.0)
                controls.append(abs(measured / plain - 1))
            if gap == 0.5:
                name = f"alpha = {alpha:g}: {measured:.4f} a round, claimed {claimed:.4f}"
                drawn.append(Curve(name, _points(range(41), distances[:41].tolist())))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"gaps of 0.25, 0.5 and 1 at beta = {_BETA:g}, slopes over rounds {_NUM_ROUNDS // 2} to "
        f"{_NUM_ROUNDS}: off by at most {max(residuals):.1e} of themselves; by "
        f"{min(controls):.2f} or more from the slope without extrapolation",
        plots=(
            Plot(
                "Distance to the best completion",
                "round",
                "total variation to the best completion",
                tuple(drawn),
                log_y=True,
                note="A gap of 0.5 in reward, beta = 2. Slopes are of the logarithm, in nats, over "
                "later rounds.",
            ),
        ),
    )


def shortfall_falls_as_one_over_t() -> Evidence:
    """Exponent and constant of the shortfall where completions close to the best are many."""
    # With rewards evenly over [0, 1] there is no gap to speak of: the hard case of the rate.
    size, beta = 2**14, 1.0
    reward = torch.linspace(0, 1, size, dtype=torch.float64)
    reference = torch.full_like(reward, -math.log(size))
    sizes = [32, 64, 128, 256]
    residuals: list[float] = []
    found: list[str] = []
    curves: list[Curve] = []
    for alpha in _ALPHAS:
        policies = (
            accelerated_policy(reference, reward.expand(rounds, -1), beta=beta, alpha=alpha)
            for rounds in sizes
        )
        short = [float(((1 - reward) * policy.exp()).sum()) for policy in policies]
        slope = fitted_slope(sizes, [[value] for value in short])
        constant = sizes[-1] * short[-1] / ((1 - alpha) * beta)
        residuals += [abs(slope.value + 1), abs(constant - 1)]
        found.append(f"alpha {alpha:g}: slope {slope.value:.3f}, constant {constant:.3f}")
        curves.append(
            Curve(f"alpha = {alpha:g}: slope {slope.value:.3f}", _points(sizes, short), "marked")
        )
    problem = FiniteProblem(reference=reference, reward=reward)
    policies_with_momentum = _rounds_with_momentum(problem, beta, sizes[-1])
    short = [float(((1 - reward) * policies_with_momentum[rounds].exp()).sum()) for rounds in sizes]
    momentum = fitted_slope(sizes, [[value] for value in short])
    name = f"alpha = (t - 1) / (t + 2): slope {momentum.value:.2f}"
    curves.append(Curve(name, _points(sizes, short), "marked"))
    return Evidence(
        largest_residual(residuals),
        abs(momentum.value + 1),
        f"{size:,} rewards evenly over [0, 1], T = {sizes[0]} to {sizes[-1]}, constant in units of "
        f"(1 - alpha) beta: {'; '.join(found)}; slope {momentum.value:.2f} where alpha grows as "
        "(t - 1) / (t + 2)",
        plots=(
            Plot(
                "Reward short of the best",
                "rounds T",
                "best reward less expected reward",
                tuple(curves),
                log_x=True,
                log_y=True,
                note="Extrapolation lowers the line and leaves its slope at -1, unless alpha grows "
                "with the rounds.",
            ),
        ),
    )


def _rounds_with_momentum(
    problem: FiniteProblem, beta: float, num_rounds: int
) -> list[Float[Tensor, " Y"]]:
    """Policies of exact rounds that are extrapolated as Nesterov's method does, ever farther."""
    policies, ahead = [problem.reference], problem.reference
    for number in range(1, num_rounds + 1):
        policies.append(exact_proximal_step(problem, ahead, beta=beta))
        alpha = (number - 1) / (number + 2)
        ahead = extrapolated(policies[-1], policies[-2], alpha=alpha)
    return policies


def _points(x: Sequence[float], y: Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple((float(a), float(b)) for a, b in zip(x, y, strict=True))


_SOURCE = "He, Yuan and Gu 2024, arXiv:2410.06293"

THEOREMS = (
    Theorem(
        name="apo_rewards_add_up",
        claim="After T exact rounds the policy is the reference tilted by the sum over rounds t "
        "of (1 - alpha^(T + 1 - t)) / (1 - alpha) times reward_t / beta.",
        control="Every round counts once, as without extrapolation.",
        source=_SOURCE,
        methods=("apo",),
        tolerance=1e-12,
        check=rewards_add_up,
    ),
    Theorem(
        name="apo_rounds_of_dpo_are_exact",
        claim="Under Bradley-Terry preferences, rounds that minimize DPO's loss over pairs from "
        "the extrapolated policy, with it as the reference, lead to that closed form.",
        control="They lead to that of an alpha larger by 0.1.",
        source=_SOURCE,
        methods=("apo", "dpo"),
        tolerance=1e-8,
        check=rounds_of_dpo_are_exact,
    ),
    Theorem(
        name="apo_decay_under_a_gap",
        claim="If the best reward leads by a gap, the logarithm of the distance to the best "
        "completion falls by gap / (beta (1 - alpha)) a round in the limit.",
        control="It falls by gap / beta whatever alpha is.",
        source=f"{_SOURCE}; the constant is derived here",
        methods=("apo",),
        tolerance=1e-5,
        check=decay_under_a_gap,
    ),
    Theorem(
        name="apo_shortfall_is_one_over_t",
        claim="Without a gap, T rounds end short of the best reward by (1 - alpha) beta / T in the "
        "limit: extrapolation gains a factor.",
        control="So they do if alpha grows from round to round as in Nesterov's momentum, as "
        "(t - 1) / (t + 2).",
        source=f"{_SOURCE}; exponent and constant are measured here",
        methods=("apo",),
        tolerance=0.05,
        check=shortfall_falls_as_one_over_t,
    ),
)
