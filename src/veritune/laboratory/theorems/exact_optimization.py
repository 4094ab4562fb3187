"""EXO and DPO on scored groups: which divergence each follows, how fast, and where that leads.

With ever larger groups EXO's loss is the reverse KL from the tempered policy to the reference
tilted by the reward, whose gradient is that of KL-regularized reinforcement learning; DPO-rw's is
the forward KL. Expectations over groups are exact except on the grid of the Gaussian, where groups
are a large fixed sample.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from veritune.laboratory.distances import total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.fitting import Fit, fit
from veritune.laboratory.group_draws import (
    drawn_groups,
    every_group,
    expected_group_loss,
    proportional_group,
)
from veritune.laboratory.languages import FiniteLanguage
from veritune.laboratory.minimize import Minimum, minimize
from veritune.laboratory.policies import (
    GaussianPolicy,
    LogLinearPolicy,
    NextSymbolPolicy,
    TabularPolicy,
    TransformerPolicy,
    parameter_gradient,
)
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.rates import fitted_slope
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.logprobs import CompletionLogProbs, PairedLogProbs, ScoredLogProbs
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.paired.dpo import dpo_loss, dpo_optimum
from veritune.objectives.paired.exo_pref import exo_pref_loss
from veritune.objectives.paired.exo_pref_official import exo_pref_official_loss
from veritune.objectives.scored.dpo_rw import dpo_rw_loss, dpo_rw_optimum
from veritune.objectives.scored.exo_rw import exo_rw_loss, exo_rw_optimum
from veritune.seeds import stream

_SEEDS = (0, 1, 2)
_TEMPERATURES = ((1.0, 1.0), (0.5, 0.5), (0.2, 0.7))
"""Pairs of beta_r and beta_pi."""

_LANGUAGE = FiniteLanguage(("a", "b"), longest=2)
_SIZES = (2, 4, 8, 16)
_MANY_SIZES = (*_SIZES, 32, 64)
_OFFICIAL_MARGIN = 10.0
"""The logit of the released code's label, (0, -10)."""


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


def _rate_of(
    loss: Callable[..., Tensor],
    gradient_of_limit: Callable[[_Setting, float, float], Tensor],
    temperatures: Iterable[tuple[float, float]],
    smallest: int,
    title: str,
) -> Evidence:
    """The exponent of K in the error, over all settings near the reference."""
    names: dict[str, list[_Errors]] = {}
    for seed in _SEEDS:
        for setting in _settings_near_the_reference(seed):
            for betas in temperatures:
                truth = gradient_of_limit(setting, *betas)
                found = _errors(loss, setting, truth, betas)
                names.setdefault(setting.name, []).append(found)
    curves, slopes, cosines = [], [], []
    for name, measured in names.items():
        sizes = measured[0].sizes
        columns = list(zip(*(m.errors for m in measured), strict=True))
        kept = [i for i, size in enumerate(sizes) if size >= smallest]
        slope = fitted_slope([sizes[i] for i in kept], [columns[i] for i in kept])
        slopes.append(slope.value)
        cosines += [min(m.cosines) for m in measured]
        means = [math.exp(math.fsum(map(math.log, c)) / len(c)) for c in columns]
        points = tuple(zip(map(float, sizes), means, strict=True))
        curves.append(Curve(f"{name}: slope {slope}", points, style="marked"))
    return Evidence(
        largest_residual(abs(slope + 1) for slope in slopes),
        smallest_control(abs(slope + 0.5) for slope in slopes),
        f"slopes from K = {smallest} on: {', '.join(f'{slope:.3f}' for slope in slopes)}; at K = 2 "
        f"the error is {min(c.points[0][1] for c in curves):.2f} to "
        f"{max(c.points[0][1] for c in curves):.2f}; smallest cosine {min(cosines):.4f}",
        (
            Plot(
                title,
                "completions in a group, K",
                "relative error of the gradient",
                tuple(curves),
                log_x=True,
                log_y=True,
                note="Geometric means over seeds and temperatures; the error halves where the "
                "group doubles.",
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
                distance = total_variation(found.policy, claimed)
                residuals.append(distance if _is_minimum(found) else math.inf)
                controls.append(total_variation(found.policy, untempered))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = 5, K = 2 and 3, beta_r = 0.7, beta_pi = 0.8: TV at most {max(residuals):.1e}",
    )


_GRID = torch.linspace(-5, 5, 201, dtype=torch.float64)
_MODE, _MODE_STD = -2.0, 0.5
_NUM_ELEMENTS = 2**17
"""Completions in the sample of groups, whatever their size."""


def _normal(mean: float, std: float) -> Float[Tensor, " Y"]:
    return -((_GRID - mean) ** 2) / (2 * std**2) - math.log(std)


@cache
def _two_modes() -> FiniteProblem:
    """A wide reference, and a reward whose tilt of it is 0.6 N(-2, 0.5) + 0.4 N(2, 0.5)."""
    reference = torch.log_softmax(_normal(0, 3), dim=0)
    target = torch.logaddexp(
        _normal(_MODE, _MODE_STD) + math.log(0.6), _normal(2, _MODE_STD) + math.log(0.4)
    )
    return FiniteProblem(reference=reference, reward=torch.log_softmax(target, dim=0) - reference)


@cache
def _best_gaussian(loss: Callable[..., Tensor], group_size: int, seed: int = 0) -> Fit:
    """The best of the minima that three starts lead to: at either mode, and across both."""
    problem = _two_modes()
    if group_size == 2:
        groups = every_group(problem.reference, 2)
    else:
        generator = stream(seed, "laboratory", "groups on a grid", group_size)
        num_groups = _NUM_ELEMENTS // group_size
        groups = drawn_groups(problem.reference, group_size, num_groups, generator)
    expected = expected_group_loss(loss, problem, groups, beta_r=1.0, beta_pi=1.0)
    starts = ((_MODE, _MODE_STD), (2.0, _MODE_STD), (0.0, 2.0))
    fits = [fit(GaussianPolicy(_GRID, mean, std), expected) for mean, std in starts]
    return min(fits, key=lambda found: found.loss)


def _moments(law: Float[Tensor, " Y"]) -> tuple[float, float]:
    """Mean and standard deviation on the grid."""
    mean = float((law.exp() * _GRID).sum())
    return mean, math.sqrt(float((law.exp() * (_GRID - mean) ** 2).sum()))


def _is_minimum(found: Fit | Minimum) -> bool:
    return found.gradient_norm < 1e-9 and found.smallest_curvature > 0


def _off(found: Fit, mean: float, std: float) -> float:
    """How far the moments of a fitted law are from these; infinite without a certificate."""
    if not _is_minimum(found):
        return math.inf
    own_mean, own_std = _moments(found.policy)
    return max(abs(own_mean - mean), abs(own_std - std))


def _says(loss: Callable[..., Tensor], group_size: int, name: str) -> str:
    mean, std = _moments(_best_gaussian(loss, group_size).policy)
    return f"{name} K = {group_size}: ({mean:.2f}, {std:.2f})"


def exo_sits_on_the_larger_mode() -> Evidence:
    """A Gaussian fitted to two modes by EXO on groups of 8 and 64."""
    fits = [_best_gaussian(exo_rw_loss, size, seed) for size in (8, 64) for seed in (0, 1)]
    others = [_best_gaussian(exo_rw_loss, 2), _best_gaussian(dpo_rw_loss, 64)]
    problem = _two_modes()
    laws = {
        "target": _target(problem, 1.0),
        "EXO, K = 64": _best_gaussian(exo_rw_loss, 64).policy,
        "EXO, K = 8": _best_gaussian(exo_rw_loss, 8).policy,
        "EXO, K = 2": _best_gaussian(exo_rw_loss, 2).policy,
        "DPO-rw, K = 64": _best_gaussian(dpo_rw_loss, 64).policy,
    }
    spacing = float(_GRID[1] - _GRID[0])
    start = GaussianPolicy(_GRID, _MODE, _MODE_STD)
    limit = fit(start, lambda law: (law.exp() * (law - laws["target"])).sum())
    curves = tuple(
        Curve(
            name,
            tuple(zip(_GRID.tolist(), (law.exp() / spacing).tolist(), strict=True)),
        )
        for name, law in laws.items()
    )
    sizes = (2, 8, 64)
    return Evidence(
        largest_residual(_off(found, _MODE, _MODE_STD) for found in fits),
        smallest_control(_off(found, _MODE, _MODE_STD) for found in others),
        f"mean and std on the grid, {_NUM_ELEMENTS} completions drawn (K = 2: all pairs): "
        + "; ".join(
            _says(loss, size, name)
            for loss, name in ((exo_rw_loss, "EXO"), (dpo_rw_loss, "DPO-rw"))
            for size in sizes
        )
        + "; the reverse KL itself: ({:.2f}, {:.2f})".format(*_moments(limit.policy)),
        (
            Plot(
                "Mode against mean",
                "completion",
                "density",
                curves,
                note="One Gaussian cannot be two modes: EXO takes the larger one when groups are "
                "large, DPO-rw puts its center where the target has nothing.",
            ),
        ),
    )


def exo_on_pairs_spans_both_modes() -> Evidence:
    """The same by EXO on pairs, every pair counted: whether it is as wide as one mode."""
    on_pairs, on_eights = (_best_gaussian(exo_rw_loss, size) for size in (2, 8))
    lacking, lacking_on_eights = (
        2 * _MODE_STD - _moments(found.policy)[1] for found in (on_pairs, on_eights)
    )
    return Evidence(
        lacking if _is_minimum(on_pairs) else math.inf,
        lacking_on_eights,
        f"{_says(exo_rw_loss, 2, 'EXO')}; {_says(exo_rw_loss, 8, 'EXO')}; a mode has std "
        f"{_MODE_STD}",
    )


def dpo_rw_matches_the_moments() -> Evidence:
    """The same by DPO-rw: the fitted mean and width are those of the whole target."""
    mean, std = _moments(_target(_two_modes(), 1.0))
    fits = [_best_gaussian(dpo_rw_loss, 64, seed) for seed in (0, 1)]
    return Evidence(
        largest_residual(_off(found, mean, std) for found in fits),
        _off(_best_gaussian(exo_rw_loss, 64), mean, std),
        f"the target has ({mean:.2f}, {std:.2f}); "
        + "; ".join(_says(dpo_rw_loss, size, "DPO-rw") for size in (2, 8, 64)),
    )


def _contest(win_probability: float) -> FiniteProblem:
    """Two completions, equally likely under the reference; the first wins this often."""
    wins = torch.tensor([[0.5, win_probability], [1 - win_probability, 0.5]], dtype=torch.float64)
    return FiniteProblem(
        reference=torch.full((2,), 0.5, dtype=torch.float64).log(),
        preferences=wins,
        pair_law=torch.full((2, 2), 0.25, dtype=torch.float64),
    )


def exo_pref_stretches_the_win_rate() -> Evidence:
    """The margin at which EXO on pairs rests, one comparison repeated."""
    beta = 0.5
    cases: list[tuple[Callable[..., Tensor], float, dict[str, Any]]] = [
        (exo_pref_loss, math.log((1 - epsilon) / epsilon), {"beta": beta, "epsilon": epsilon})
        for epsilon in (1e-3, 1e-2)
    ]
    cases.append((exo_pref_official_loss, _OFFICIAL_MARGIN, {"beta_pi": beta}))
    residuals, controls, seen = [], [], []
    for loss, largest, hyperparameters in cases:
        for win_probability in (0.6, 0.75, 0.9, 1.0):
            problem = _contest(win_probability)
            expected = population_loss(loss, problem, **hyperparameters)
            found = minimize(expected, problem.reference)
            margin = beta * float(found.policy[0] - found.policy[1])
            claimed = (2 * win_probability - 1) * largest
            residuals.append(abs(margin - claimed) if _is_minimum(found) else math.inf)
            if win_probability < 1:
                logit = math.log(win_probability / (1 - win_probability))
                controls.append(abs(margin - logit))
            if hyperparameters.get("epsilon") == 1e-3:
                seen.append(f"{margin:.4f} at p = {win_probability:g}")
    many = bradley_terry_problem(5, seed=0)
    found = minimize(population_loss(exo_pref_loss, many, beta=0.5, epsilon=1e-3), many.reference)
    away = total_variation(found.policy, dpo_optimum(many, beta=0.5))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"epsilon = 0.001: {', '.join(seen)}; also 0.01 and the released label of -10; on all "
        f"pairs of five completions the minimizer is TV {away:.2f} from DPO's",
    )


def _paired_force(
    loss: Callable[..., Tensor], margins: Tensor, scale: str, **others: float
) -> Tensor:
    """Derivative of a loss with respect to `scale` times the log-ratio margin."""
    beta = 0.5
    chosen = (margins / beta).requires_grad_()
    zero, one = torch.zeros_like(margins), torch.ones_like(margins, dtype=torch.long)
    pairs = PairedLogProbs(
        CompletionLogProbs(chosen, one, zero), CompletionLogProbs(zero, one, zero)
    )
    total = loss(pairs, **{scale: beta}, **others).sum()
    return torch.autograd.grad(total, chosen)[0] / beta


def _scored_force(loss: Callable[..., Tensor], margins: Tensor, reward_margin: float) -> Tensor:
    """The same on groups of two whose scores differ by this, at beta_r = beta_pi = 0.5."""
    beta = 0.5
    policy = torch.stack([margins / beta, torch.zeros_like(margins)], dim=1).requires_grad_()
    scores = torch.zeros_like(policy).detach()
    scores[:, 0] = beta * reward_margin
    groups = ScoredLogProbs(
        CompletionLogProbs(
            policy,
            torch.ones_like(scores, dtype=torch.long),
            torch.zeros_like(scores),
        ),
        scores,
        torch.ones_like(scores, dtype=torch.bool),
    )
    total = loss(groups, beta_pi=beta, beta_r=beta).sum()
    return torch.autograd.grad(total, policy)[0][:, 0] / beta


def exo_force_has_a_fixed_point() -> Evidence:
    """Forces on a pair against their closed forms, and the point where EXO's turns."""
    margins = torch.linspace(-30, 30, 121, dtype=torch.float64)
    policy = torch.sigmoid(margins)
    epsilon, reward_margin = 1e-3, 3.0
    label = math.log((1 - epsilon) / epsilon)
    found = {
        "EXO on pairs": (_paired_force(exo_pref_loss, margins, "beta", epsilon=epsilon), label),
        "EXO on pairs, as released": (
            _paired_force(exo_pref_official_loss, margins, "beta_pi"),
            _OFFICIAL_MARGIN,
        ),
        "EXO on scored pairs": (_scored_force(exo_rw_loss, margins, reward_margin), reward_margin),
    }
    residuals, controls = [], []
    for force, fixed in found.values():
        reverse = policy * (1 - policy) * (margins - fixed)
        forward = policy - 1 / (1 + math.exp(-fixed))
        residuals.append(float((force - reverse).abs().max()))
        controls.append(float((force - forward).abs().max()))
    # The forward KL has that other force.
    other = _scored_force(dpo_rw_loss, margins, reward_margin)
    expected = policy - 1 / (1 + math.exp(-reward_margin))
    residuals.append(float((other - expected).abs().max()))
    curves = [
        (name, force)
        for name, force in (
            *((name, force) for name, (force, _) in found.items()),
            ("DPO-rw on scored pairs", other),
            ("DPO", _paired_force(dpo_loss, margins, "beta")),
        )
    ]
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"margins from -30 to 30; EXO's forces vanish at {label:.3f}, {_OFFICIAL_MARGIN:g} and "
        f"{reward_margin:g}; largest error {max(residuals):.1e}",
        (
            Plot(
                "Force on a pair",
                "margin z, in nats",
                "d loss / dz",
                tuple(
                    Curve(name, tuple(zip(margins.tolist(), force.tolist(), strict=True)))
                    for name, force in curves
                ),
                note="Where a curve is negative the margin is pushed up. EXO lets go of pairs that "
                "are ranked wrongly with confidence, DPO pulls at them with all its force.",
            ),
        ),
    )


def exo_lets_go_of_misranked_pairs() -> Evidence:
    """Forces on a pair that is ranked wrongly by many nats."""
    margins = torch.tensor([-40.0, -60.0, -100.0], dtype=torch.float64)
    forces = [
        _paired_force(exo_pref_loss, margins, "beta", epsilon=1e-3),
        _paired_force(exo_pref_official_loss, margins, "beta_pi"),
        _scored_force(exo_rw_loss, margins, 3.0),
    ]
    others = [
        _paired_force(dpo_loss, margins, "beta"),
        _scored_force(dpo_rw_loss, margins, 3.0),
    ]
    largest = max(float(force.abs().max()) for force in forces)
    smallest = min(float(force.abs().min()) for force in others)
    return Evidence(
        largest,
        smallest,
        f"wrong by 40, 60 and 100 nats: at most {largest:.1e}; DPO and DPO-rw at least "
        f"{smallest:.2f}",
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
        methods=("exo_rw", "dpo_rw"),
        tolerance=1e-10,
        check=exo_follows_reinforcement_learning,
    ),
    Theorem(
        name="dpo_rw_follows_the_forward_kl",
        claim="On such a group DPO-rw's gradient is that of KL(tilted reference || tempered "
        "policy), for any parametrization.",
        control="EXO's gradient is.",
        source=_EXO,
        methods=("dpo_rw", "exo_rw"),
        tolerance=1e-10,
        check=dpo_rw_follows_the_forward_kl,
    ),
    Theorem(
        name="exo_begins_along_reinforcement_learning",
        claim="At the reference, EXO's expected gradient on groups of K is (K - 1) / K of that of "
        "KL-regularized RL, over beta_r: the same direction, even for pairs.",
        control="DPO-rw's is.",
        source="derived here, from the group form of arXiv:2402.00856",
        methods=("exo_rw", "dpo_rw"),
        tolerance=1e-10,
        check=exo_begins_along_reinforcement_learning,
    ),
    Theorem(
        name="exo_error_is_one_over_k",
        claim="Near the reference the relative error of EXO's expected gradient against that of "
        "KL-regularized RL falls like 1 / K.",
        control="It falls like 1 / sqrt(K).",
        source=f"{_EXO}; the rate is measured here",
        methods=("exo_rw",),
        tolerance=0.03,
        check=exo_error_is_one_over_k,
    ),
    Theorem(
        name="dpo_rw_error_is_one_over_k",
        claim="Near the reference the relative error of DPO-rw's expected gradient against that of "
        "the forward KL falls like 1 / K, where scores differ by no more than beta_r or so.",
        control="It falls like 1 / sqrt(K).",
        source="measured here",
        methods=("dpo_rw",),
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
    Theorem(
        name="exo_sits_on_the_larger_mode",
        claim="On groups of 8 or more, a Gaussian fitted by EXO to two modes sits on the larger.",
        control="So it does on pairs, or under DPO-rw.",
        source=f"{_EXO}, figure 1",
        methods=("exo_rw", "dpo_rw"),
        tolerance=0.05,
        check=exo_sits_on_the_larger_mode,
    ),
    Theorem(
        name="exo_on_pairs_spans_both_modes",
        claim="On pairs EXO is not mode-seeking: the Gaussian is over twice as wide as a mode.",
        control="So it is on groups of 8.",
        source="derived here",
        methods=("exo_rw",),
        tolerance=0.01,
        check=exo_on_pairs_spans_both_modes,
    ),
    Theorem(
        name="dpo_rw_matches_the_moments",
        claim="A Gaussian fitted by DPO-rw on groups of 64 has mean and width of the whole target.",
        control="So it has under EXO.",
        source=f"{_EXO}, figure 1",
        methods=("dpo_rw", "exo_rw"),
        tolerance=0.06,
        check=dpo_rw_matches_the_moments,
    ),
    Theorem(
        name="exo_pref_stretches_the_win_rate",
        claim="On a comparison won with probability p, EXO on pairs rests at the margin "
        "(2p - 1) log((1 - epsilon) / epsilon).",
        control="It rests at logit(p), as an estimator of a Bradley-Terry reward would.",
        source="derived from eq. 16 of arXiv:2402.00856",
        methods=("exo_pref", "exo_pref_official"),
        tolerance=1e-6,
        check=exo_pref_stretches_the_win_rate,
    ),
    Theorem(
        name="exo_force_has_a_fixed_point",
        claim="EXO's force on a pair is q (1 - q) (z - a), with q = sigmoid(z): it turns at the "
        "label's margin a. DPO-rw's is q - sigmoid(a).",
        control="EXO's is q - sigmoid(a), too.",
        source="derived from arXiv:2402.00856",
        methods=("exo_pref", "exo_pref_official", "exo_rw", "dpo_rw"),
        tolerance=1e-12,
        check=exo_force_has_a_fixed_point,
    ),
    Theorem(
        name="exo_lets_go_of_misranked_pairs",
        claim="EXO's force fades on pairs that are ranked wrongly with confidence.",
        control="DPO's does.",
        source="derived from arXiv:2402.00856",
        methods=("exo_pref", "exo_pref_official", "exo_rw", "dpo", "dpo_rw"),
        tolerance=1e-12,
        check=exo_lets_go_of_misranked_pairs,
    ),
)
