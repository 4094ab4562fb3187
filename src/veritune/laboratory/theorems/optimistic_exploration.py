"""Optimistic proximal policy optimization: its improvement step, and the regret with its bonus."""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.decision_processes import (
    EpisodicProcess,
    combination_lock,
    lock_features,
)
from veritune.laboratory.distances import kl
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.oppo import (
    RegretGrowth,
    improved_policy,
    oppo_step_size,
    regret_growth,
    three_point_residual,
)
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.ranges import NonNegative, Positive
from veritune.seeds import stream

_BONUS = 2.0


def _random(*shape: int, seed: int, what: str) -> Tensor:
    generator = stream(seed, "laboratory", "exploration", what)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def three_point_identity() -> Evidence:
    """Both sides of the identity, for random policies, values and step sizes."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in range(20):
        policy, other = (2 * _random(2, 6, seed=seed, what="laws")).log_softmax(dim=-1)
        values = 5 * _random(6, seed=seed, what="values")
        for eta in (0.1, 0.7, 3.0):
            residual = three_point_residual(policy, values, other, eta=eta)
            residuals.append(abs(residual))
            controls.append(abs(residual - kl(improved_policy(policy, values, eta), policy)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"20 triples over 6 actions, eta = 0.1, 0.7 and 3: sides differ by at most "
        f"{max(residuals):.1e}; without KL(policy' || policy) by {min(controls):.1e} or more",
    )


def regret_of_improvements(values: Float[Tensor, "K A"], eta: Positive) -> float:
    """What K improvements miss, from the uniform policy on.

        regret = largest over a of sum over k of values_k(a) - sum over k of <values_k, policy_k>

    The policy of a round is improved by the values of earlier rounds alone.
    """
    policy = torch.full_like(values[0], -math.log(values.shape[1]))
    regret = values.sum(dim=0).max()
    for seen in values:
        regret = regret - policy.exp() @ seen
        policy = improved_policy(policy, seen, eta)
    return float(regret)


def improvements_have_small_regret() -> Evidence:
    """Regret of the improvement step over its bound, less 1, against values of several kinds."""
    horizon, num_actions = 6, 5
    lock = combination_lock(num_actions, horizon)
    residuals: list[float] = []
    controls: list[float] = []
    for num_rounds in (100, 1_000):
        bound = horizon * math.sqrt(2 * num_rounds * math.log(num_actions))
        eta = oppo_step_size(lock, num_rounds)
        # Values that turn around in every round punish whoever follows the last one.
        turning = torch.zeros(num_rounds, num_actions, dtype=torch.float64)
        turning[0, 0] = horizon / 2
        turning[1::2, 1] = horizon
        turning[2::2, 0] = horizon
        noise = _random(num_rounds, num_actions, seed=num_rounds, what="noise")
        shifts = (torch.arange(num_rounds) * num_actions // num_rounds)[:, None]
        drifting = (shifts == torch.arange(num_actions)).to(torch.float64)
        for values in (turning, horizon * (noise > 0).to(torch.float64), horizon * drifting):
            residuals.append(regret_of_improvements(values, eta) / bound - 1)
        controls.append(regret_of_improvements(turning, 1e3) / bound - 1)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"A = {num_actions}, H = {horizon}, K = 100 and 1,000, values that turn, are noise or "
        f"drift: regret is {1 + min(residuals):.2f} to {1 + max(residuals):.2f} of the bound; "
        f"at a step size of 1,000 it is {1 + min(controls):.2f} of it and more",
    )


def _growth(
    process: EpisodicProcess, num_episodes: tuple[int, ...], beta: NonNegative, num_runs: int
) -> RegretGrowth:
    rewards = process.reward.expand(num_episodes[-1], -1, -1, -1)
    return regret_growth(process, rewards, num_episodes=num_episodes, beta=beta, num_runs=num_runs)


def _curve(name: str, growth: RegretGrowth) -> Curve:
    mean = growth.regret.mean(dim=1).tolist()
    points = tuple((float(k), value) for k, value in zip(growth.num_episodes, mean, strict=True))
    return Curve(f"{name}: slope {float(growth.slopes.mean()):.3f}", points, "marked")


def regret_of(process: EpisodicProcess, num_episodes: tuple[int, ...], what: str) -> Evidence:
    """Slopes of regret with the bonus and without, in excess of one half."""
    bold = _growth(process, num_episodes, _BONUS, num_runs=8)
    meek = _growth(process, num_episodes, 0.0, num_runs=1)
    low, high = bold.slope_interval
    with_bonus, without = float(bold.slopes.mean()), float(meek.slopes.mean())
    first = float(bold.regret[0].mean())
    square_root = [(float(k), first * math.sqrt(k / num_episodes[0])) for k in num_episodes]
    curves = (
        _curve(f"bonus factor {_BONUS:g}", bold),
        _curve("no bonus", meek),
        Curve("sqrt(K)", tuple(square_root), "guide"),
    )
    return Evidence(
        with_bonus - 0.5,
        without - 0.5,
        f"{what}, K = {num_episodes[0]:,} to {num_episodes[-1]:,}: slope {with_bonus:.3f} with a "
        f"bonus factor of {_BONUS:g} (three standard errors: {low:.3f} to {high:.3f}), "
        f"{without:.3f} without. The factor is ours: with the theorem's constants everything "
        "stays clipped at these K",
        plots=(
            Plot(
                f"Regret on {what}",
                "episodes K",
                "regret",
                curves,
                log_x=True,
                log_y=True,
                note="Mean over runs; every number of episodes has the step size of the theorem.",
            ),
        ),
    )


def regret_on_the_lock() -> Evidence:
    """Regret where nothing is known of the transitions.

    The slope depends on where K begins: of fewer episodes a good part goes by before the
    combination is found.
    """
    lock = combination_lock(5, 6)
    found = regret_of(lock, (2_000, 4_000, 8_000), "a lock of 5 actions and 6 steps, 20 features")
    early = _growth(lock, (1_000, 2_000, 4_000), _BONUS, num_runs=8)
    low, high = early.slope_interval
    slope = float(early.slopes.mean())
    return dataclasses.replace(
        found,
        detail=f"{found.detail}. Over K = 1,000 to 4,000 the slope with the bonus is {slope:.2f} "
        f"(three standard errors: {low:.2f} to {high:.2f})",
    )


def regret_on_the_linear_lock() -> Evidence:
    """Regret where all is known of the transitions but the combination."""
    lock = dataclasses.replace(combination_lock(5, 6), features=lock_features(5))
    return regret_of(lock, (1_000, 2_000, 4_000), "a lock that is linear in 5 features")


_SOURCE = "Cai, Yang, Jin and Wang 2019, arXiv:1912.05830"

THEOREMS = (
    Theorem(
        name="oppo_three_point_identity",
        claim="For policy' proportional to policy * exp(eta * Q) and any q, eta <Q, q - policy'> = "
        "KL(q || policy) - KL(q || policy') - KL(policy' || policy).",
        control="It is so without the last term.",
        source=_SOURCE,
        methods=("oppo",),
        tolerance=1e-12,
        check=three_point_identity,
    ),
    Theorem(
        name="oppo_improvement_regret",
        claim="Against any values from 0 to H, K improvements of the theorem's step size have a "
        "regret of at most H sqrt(2 K log A).",
        control="They have it with any step size.",
        source=f"{_SOURCE}; the bound of mirror descent, derived here from the identity",
        methods=("oppo",),
        tolerance=1e-9,
        check=improvements_have_small_regret,
    ),
    Theorem(
        name="oppo_regret_on_a_lock",
        claim="On a lock whose combination is found by trying, OPPO's regret grows no faster than "
        "sqrt(K) over K = 2,000 to 8,000 episodes.",
        control="It does so without the bonus.",
        source=f"{_SOURCE}; measured here",
        methods=("oppo",),
        tolerance=0.03,
        check=regret_on_the_lock,
    ),
    Theorem(
        name="oppo_regret_on_a_linear_lock",
        claim="On a lock that is known to be linear in five features, OPPO's regret grows no "
        "faster than sqrt(K) over K = 1,000 to 4,000 episodes.",
        control="It does so without the bonus.",
        source=f"{_SOURCE}; measured here",
        methods=("oppo",),
        tolerance=0.03,
        check=regret_on_the_linear_lock,
    ),
)
