"""EXO and DPO on scored groups: which divergence each follows, how fast, and where that leads.

With ever larger groups EXO's loss is the reverse KL from the tempered policy to the reference
tilted by the reward, whose gradient is that of KL-regularized reinforcement learning; DPO-rw's is
the forward KL. Expectations over groups are exact.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.group_draws import (
    every_group,
    expected_group_loss,
    proportional_group,
)
from veritune.laboratory.languages import FiniteLanguage
from veritune.laboratory.minimize import distance_of_minimum, minimize
from veritune.laboratory.policies import (
    LogLinearPolicy,
    NextSymbolPolicy,
    TabularPolicy,
    TransformerPolicy,
    parameter_gradient,
)
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.rates import Slope, fitted_slope
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.scored.dpo_rw import dpo_rw_loss, dpo_rw_optimum
from veritune.objectives.scored.exo_rw import exo_rw_loss, exo_rw_optimum
from veritune.seeds import stream

_SEEDS = (0, 1, 2)
_TEMPERATURES = ((1.0, 1.0), (0.5, 0.5), (0.2, 0.7))
"""Pairs of beta_r and beta_pi."""

_LANGUAGE = FiniteLanguage(("a", "b"), longest=2)
_SIZES = (2, 4, 8, 16)
_MANY_SIZES = (*_SIZES, 32, 64)


class _Setting(NamedTuple):
    """A policy and a problem with as many completions."""

    name: str
    policy: nn.Module
    problem: FiniteProblem


def _reward(num_completions: int, generator: torch.Generator) -> Float[Tensor, " Y"]:
    return torch.randn(num_completions, generator=generator, dtype=torch.float64)


def _policies(seed: int) -> Iterator[tuple[str, nn.Module]]:
    """A policy of each kind: two parameters, a table of next symbols, a transformer."""
    generator = stream(seed, "laboratory", "log-linear policy")
    features = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, generator=generator, dtype=torch.float64)
    yield "two parameters", LogLinearPolicy(features, weights)
    yield "next-symbol table", NextSymbolPolicy(_LANGUAGE, seed)
    yield "transformer", TransformerPolicy(_LANGUAGE, seed)


def _settings_near_the_reference(seed: int) -> Iterator[_Setting]:
    """The reference is the policy before each parameter moved by a tenth of their spread."""
    generator = stream(seed, "laboratory", "near the reference")
    for name, start in _policies(seed):
        policy = deepcopy(start)
        with torch.no_grad():
            for parameter in policy.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * parameter.std() * noise)
        reference = start().detach()
        reward = _reward(len(reference), generator)
        yield _Setting(name, policy, FiniteProblem(reference=reference, reward=reward))


def _tempered(setting: _Setting, beta_pi: float) -> Float[Tensor, " Y"]:
    """Log-probabilities proportional to policy^beta_pi * reference^(1 - beta_pi)."""
    reference = setting.problem.reference
    return torch.log_softmax(beta_pi * setting.policy() + (1 - beta_pi) * reference, dim=0)


def _target(problem: FiniteProblem, beta_r: float) -> Float[Tensor, " Y"]:
    assert problem.reward is not None, "scores are a reward"
    return tilted_reference(problem.reference, problem.reward / beta_r)


def _reinforcement_gradient(setting: _Setting, beta_r: float, beta_pi: float) -> Tensor:
    """`-1/beta_r` times the gradient of E[reward] - beta_r KL(tempered policy || reference)."""
    problem = setting.problem
    assert problem.reward is not None, "a reward is maximized"
    law = _tempered(setting, beta_pi)
    gain = (law.exp() * (problem.reward - beta_r * (law - problem.reference))).sum()
    return -parameter_gradient(gain, setting.policy) / beta_r


def _forward_gradient(setting: _Setting, beta_r: float, beta_pi: float) -> Tensor:
    """Gradient of KL(target || tempered policy)."""
    target, law = _target(setting.problem, beta_r), _tempered(setting, beta_pi)
    return parameter_gradient((target.exp() * (target - law)).sum(), setting.policy)


def _gradient(
    loss: Callable[..., Tensor], setting: _Setting, group_size: int, beta_r: float, beta_pi: float
) -> Tensor:
    """Expected gradient of an objective over all groups of a size."""
    groups = every_group(setting.problem.reference, group_size)
    expected = expected_group_loss(loss, setting.problem, groups, beta_r=beta_r, beta_pi=beta_pi)
    return parameter_gradient(expected(setting.policy()), setting.policy)


def _limit_gradient(
    loss: Callable[..., Tensor],
    setting: _Setting,
    counts: Tensor,
    beta_r: float,
    beta_pi: float,
) -> Tensor:
    """The same for a group that holds every completion in proportion to the reference."""
    groups = proportional_group(counts)
    expected = expected_group_loss(loss, setting.problem, groups, beta_r=beta_r, beta_pi=beta_pi)
    return parameter_gradient(expected(setting.policy()), setting.policy)


def _settings_with_counts(seed: int) -> Iterator[tuple[_Setting, Tensor]]:
    """Policies far from a reference whose probabilities are whole numbers over their sum."""
    generator = stream(seed, "laboratory", "counted reference")
    table = ("table", TabularPolicy(_reward(6, generator)))
    for name, policy in (table, *_policies(seed)):
        size = len(policy())
        counts = torch.randint(1, 6, (size,), generator=generator)
        reference = (counts.double() / counts.sum()).log()
        problem = FiniteProblem(reference=reference, reward=_reward(size, generator))
        yield _Setting(name, policy, problem), counts


def _distance(first: Tensor, second: Tensor) -> float:
    """Length of the difference over the length of the second."""
    return float((first - second).norm() / second.norm())


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.cosine_similarity(first, second, dim=0))


def exo_follows_reinforcement_learning() -> Evidence:
    """EXO's gradient in the limit of large groups against that of regularized RL."""
    residuals, controls, lengths = [], [], []
    for seed in _SEEDS:
        for setting, counts in _settings_with_counts(seed):
            for betas in _TEMPERATURES:
                truth = _reinforcement_gradient(setting, *betas)
                found = _limit_gradient(exo_rw_loss, setting, counts, *betas)
                forward = _limit_gradient(dpo_rw_loss, setting, counts, *betas)
                residuals.append(_distance(found, truth))
                controls.append(_distance(forward, truth))
                lengths.append(len(truth))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"(beta_r, beta_pi) = {', '.join(map(str, _TEMPERATURES))}; a table, two parameters, a "
        f"next-symbol table and a transformer of {max(lengths)} parameters, Y = 4 and 6, far from "
        f"the reference: relative distance at most {max(residuals):.1e}; DPO-rw's gradient is "
        f"{min(controls):.2g} to {max(controls):.2g} away",
    )


def dpo_rw_follows_the_forward_kl() -> Evidence:
    """DPO-rw's gradient in the limit of large groups against that of the forward KL."""
    residuals, controls = [], []
    for seed in _SEEDS:
        for setting, counts in _settings_with_counts(seed):
            for betas in _TEMPERATURES:
                truth = _forward_gradient(setting, *betas)
                found = _limit_gradient(dpo_rw_loss, setting, counts, *betas)
                reverse = _limit_gradient(exo_rw_loss, setting, counts, *betas)
                residuals.append(_distance(found, truth))
                controls.append(_distance(reverse, truth))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"the same policies: relative distance at most {max(residuals):.1e}; EXO's gradient is at "
        f"least {min(controls):.2g} away",
    )


def exo_begins_along_reinforcement_learning() -> Evidence:
    """EXO's expected gradient at the reference, for groups of any size."""
    residuals, controls = [], []
    for seed in _SEEDS:
        generator = stream(seed, "laboratory", "at the reference")
        for name, policy in _policies(seed):
            reference = policy().detach()
            reward = _reward(len(reference), generator)
            problem = FiniteProblem(reference=reference, reward=reward)
            setting = _Setting(name, policy, problem)
            for betas in _TEMPERATURES:
                truth = _reinforcement_gradient(setting, *betas)
                for size in (2, 3, 4, 8):
                    share = (size - 1) / size
                    found = _gradient(exo_rw_loss, setting, size, *betas)
                    forward = _gradient(dpo_rw_loss, setting, size, *betas)
                    residuals.append(_distance(found, share * truth))
                    controls.append(_distance(forward, share * truth))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"K = 2, 3, 4, 8; three kinds of policies: relative distance at most {max(residuals):.1e}; "
        f"DPO-rw's gradient there is at least {min(controls):.2g} away",
    )


class _Errors(NamedTuple):
    """Relative errors and cosines of the expected gradient at each group size."""

    sizes: tuple[int, ...]
    errors: list[float]
    cosines: list[float]


def _errors(
    loss: Callable[..., Tensor], setting: _Setting, truth: Tensor, betas: tuple[float, float]
) -> _Errors:
    sizes = _MANY_SIZES if setting.problem.num_completions == 4 else _SIZES
    gradients = [_gradient(loss, setting, size, *betas) for size in sizes]
    return _Errors(
        sizes,
        [_distance(gradient, truth) for gradient in gradients],
        [_cosine(gradient, truth) for gradient in gradients],
    )


class _Rate(NamedTuple):
    """The exponent of K in the error, and the geometric mean of the error at each K."""

    slope: Slope
    means: tuple[tuple[float, float], ...]


def _fitted(measured: Sequence[_Errors], smallest: int) -> _Rate:
    """The rate from K = smallest on."""
    sizes = measured[0].sizes
    columns = list(zip(*(each.errors for each in measured), strict=True))
    kept = [i for i, size in enumerate(sizes) if size >= smallest]
    slope = fitted_slope([sizes[i] for i in kept], [columns[i] for i in kept])
    means = [math.exp(math.fsum(map(math.log, column)) / len(column)) for column in columns]
    return _Rate(slope, tuple(zip(map(float, sizes), means, strict=True)))


def _rate_of(
    loss: Callable[..., Tensor],
    gradient_of_limit: Callable[[_Setting, float, float], Tensor],
    temperatures: Iterable[tuple[float, float]],
    smallest: int,
    title: str,
    *,
    other_loss: Callable[..., Tensor],
    other_name: str,
) -> Evidence:
    """The exponent of K in the error of an objective and of one that follows something else."""
    found: dict[str, list[_Errors]] = {}
    others: dict[str, list[_Errors]] = {}
    for seed in _SEEDS:
        for setting in _settings_near_the_reference(seed):
            for betas in temperatures:
                truth = gradient_of_limit(setting, *betas)
                for objective, measured in ((loss, found), (other_loss, others)):
                    errors = _errors(objective, setting, truth, betas)
                    measured.setdefault(setting.name, []).append(errors)
    rates = {name: _fitted(measured, smallest) for name, measured in found.items()}
    other_rates = {name: _fitted(measured, smallest) for name, measured in others.items()}
    at_two = [rate.means[0][1] for rate in rates.values()]
    cosine = min(min(errors.cosines) for measured in found.values() for errors in measured)
    curves = [
        *(
            Curve(f"{name}: slope {rate.slope}", rate.means, "marked")
            for name, rate in rates.items()
        ),
        *(
            Curve(f"{other_name}, {name}: slope {rate.slope.value:.2f}", rate.means)
            for name, rate in other_rates.items()
        ),
    ]
    return Evidence(
        largest_residual(abs(rate.slope.value + 1) for rate in rates.values()),
        smallest_control(abs(rate.slope.value + 1) for rate in other_rates.values()),
        f"slopes from K = {smallest} on: "
        + ", ".join(f"{rate.slope.value:.3f}" for rate in rates.values())
        + f"; at K = 2 the error is {min(at_two):.2f} to {max(at_two):.2f}; smallest cosine "
        f"{cosine:.4f}; {other_name}'s slopes are "
        + ", ".join(f"{rate.slope.value:.2f}" for rate in other_rates.values()),
        (
            Plot(
                title,
                "completions in a group, K",
                "relative error of the gradient",
                tuple(curves),
                log_x=True,
                log_y=True,
                note="Geometric means over seeds and temperatures; the error halves where the "
                f"group doubles. That of {other_name} does not go away.",
            ),
        ),
    )


def exo_error_is_one_over_k() -> Evidence:
    """How fast EXO's expected gradient approaches that of regularized RL."""
    return _rate_of(
        exo_rw_loss,
        _reinforcement_gradient,
        _TEMPERATURES,
        2,
        "EXO's gradient against that of KL-regularized RL",
        other_loss=dpo_rw_loss,
        other_name="DPO-rw",
    )


def dpo_rw_error_is_one_over_k() -> Evidence:
    """How fast DPO-rw's expected gradient approaches that of the forward KL.

    The colder the scores, the later the rate sets in: a group must hold the best completions.
    """
    return _rate_of(
        dpo_rw_loss,
        _forward_gradient,
        ((2.0, 1.0), (2.0, 0.5)),
        4,
        "DPO-rw's gradient against that of the forward KL",
        other_loss=exo_rw_loss,
        other_name="EXO",
    )


def _counterexample() -> _Setting:
    """Three completions, a uniform reference, one parameter, all numbers small and whole."""
    features = torch.tensor([[-1.0], [2.0], [0.0]], dtype=torch.float64)
    problem = FiniteProblem(
        reference=torch.full((3,), 1 / 3, dtype=torch.float64).log(),
        reward=torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64),
    )
    policy = LogLinearPolicy(features, torch.ones(1, dtype=torch.float64))
    return _Setting("one parameter", policy, problem)


def exo_on_pairs_can_point_away() -> Evidence:
    """The direction of EXO's expected gradient on pairs, away from the reference."""
    setting = _counterexample()
    truth = _reinforcement_gradient(setting, 1.0, 1.0)
    found = {size: _gradient(exo_rw_loss, setting, size, 1.0, 1.0) for size in _MANY_SIZES}
    return Evidence(
        1 + _cosine(found[2], truth),
        1 + _cosine(found[16], truth),
        "uniform reference over three completions, rewards 1, 3, 0, policy proportional to "
        f"exp(-1), exp(2), exp(0), beta_r = beta_pi = 1: the derivative is {float(truth):.3f} for "
        "RL and "
        + ", ".join(f"{float(value):.3f} for K = {size}" for size, value in found.items()),
    )


def exo_and_dpo_rw_share_an_optimum() -> Evidence:
    """Minimizers over all laws, on groups of two and three."""
    residuals, controls = [], []
    for seed in _SEEDS:
        problem = bradley_terry_problem(5, seed)
        for loss, optimum in ((exo_rw_loss, exo_rw_optimum), (dpo_rw_loss, dpo_rw_optimum)):
            for size in (2, 3):
                groups = every_group(problem.reference, size)
                expected = expected_group_loss(loss, problem, groups, beta_r=0.7, beta_pi=0.8)
                found = minimize(expected, problem.reference)
                claimed = optimum(problem, beta_r=0.7, beta_pi=0.8)
                untempered = optimum(problem, beta_r=0.7, beta_pi=1.0)
                residuals.append(distance_of_minimum(found, claimed, uncertified=math.inf))
                controls.append(distance_of_minimum(found, untempered, uncertified=0.0))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = 5, K = 2 and 3, beta_r = 0.7, beta_pi = 0.8: TV at most {max(residuals):.1e}",
    )


_EXO = "Ji et al. 2024, arXiv:2402.00856"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="exo_follows_reinforcement_learning",
        claim="On a group that holds every completion in proportion to the reference, EXO's "
        "gradient is -1/beta_r times that of KL-regularized RL for the tempered policy, for any "
        "parametrization.",
        control="DPO-rw's gradient is.",
        source=f"{_EXO}, asymptotic equivalence",
        methods=("exo_rw",),
        contrasts=("dpo_rw",),
        tolerance=1e-10,
        check=exo_follows_reinforcement_learning,
    ),
    Theorem(
        name="dpo_rw_follows_the_forward_kl",
        claim="On such a group DPO-rw's gradient is that of KL(tilted reference || tempered "
        "policy), for any parametrization.",
        control="EXO's gradient is.",
        source=_EXO,
        methods=("dpo_rw",),
        contrasts=("exo_rw",),
        tolerance=1e-10,
        check=dpo_rw_follows_the_forward_kl,
    ),
    Theorem(
        name="exo_begins_along_reinforcement_learning",
        claim="At the reference, EXO's expected gradient on groups of K is (K - 1) / K of that of "
        "KL-regularized RL, over beta_r: the same direction, even for pairs.",
        control="DPO-rw's is.",
        source="derived here, from the group form of arXiv:2402.00856",
        methods=("exo_rw",),
        contrasts=("dpo_rw",),
        tolerance=1e-10,
        check=exo_begins_along_reinforcement_learning,
    ),
    Theorem(
        name="exo_error_is_one_over_k",
        claim="Near the reference the relative error of EXO's expected gradient against that of "
        "KL-regularized RL falls like 1 / K.",
        control="So does that of DPO-rw's.",
        source=f"{_EXO}; the rate is measured here",
        methods=("exo_rw",),
        contrasts=("dpo_rw",),
        tolerance=0.03,
        check=exo_error_is_one_over_k,
    ),
    Theorem(
        name="dpo_rw_error_is_one_over_k",
        claim="Near the reference the relative error of DPO-rw's expected gradient against that of "
        "the forward KL falls like 1 / K, where scores differ by no more than beta_r or so.",
        control="So does that of EXO's.",
        source="measured here",
        methods=("dpo_rw",),
        contrasts=("exo_rw",),
        tolerance=0.04,
        check=dpo_rw_error_is_one_over_k,
    ),
    Theorem(
        name="exo_on_pairs_can_point_away",
        claim="Away from the reference, EXO's expected gradient on pairs can point against that of "
        "KL-regularized RL.",
        control="On groups of 16 it still does.",
        source="counterexample found here",
        methods=("exo_rw",),
        tolerance=1e-10,
        check=exo_on_pairs_can_point_away,
    ),
    Theorem(
        name="exo_and_dpo_rw_share_an_optimum",
        claim="A policy without limits has the same optimum under EXO and DPO-rw at any K: the "
        "reference tilted by reward / (beta_r beta_pi).",
        control="It is tilted by reward / beta_r.",
        source=_EXO,
        methods=("exo_rw", "dpo_rw"),
        tolerance=1e-7,
        check=exo_and_dpo_rw_share_an_optimum,
    ),
)
