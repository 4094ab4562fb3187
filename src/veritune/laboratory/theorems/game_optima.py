"""Objectives that regress on win probabilities: SPPO and its game, NCA on pairs, IPO per token."""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.lengths import with_lengths
from veritune.laboratory.minimize import distance_of_minimum, is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import (
    bradley_terry_problem,
    cyclic_problem,
    deterministic_problem,
    independent_pairs,
)
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.laboratory.tilts import tilted_per_token
from veritune.objectives.optimum import FiniteProblem, tilted_reference, win_probability
from veritune.objectives.paired.ipo_mean import ipo_mean_loss
from veritune.objectives.paired.nca import nca_loss
from veritune.objectives.paired.sppo import sppo_loss

_SEEDS = (0, 1, 2)
_NUM_COMPLETIONS = 5
_NUM_ROUNDS = 256
_HALVINGS = 60


def _problems(seed: int) -> tuple[FiniteProblem, ...]:
    """Pairs from the reference under preferences of three kinds."""
    makers = (bradley_terry_problem, cyclic_problem, deterministic_problem)
    return tuple(make(_NUM_COMPLETIONS, seed) for make in makers)


def _game_tilt(problem: FiniteProblem, beta: float) -> Float[Tensor, " Y"]:
    """The reference tilted by the win probability over beta: the next round of the game."""
    return tilted_reference(problem.reference, win_probability(problem) / beta)


def sppo_regresses_on_the_win_rate() -> Evidence:
    """Gradient of SPPO over log-probabilities that need not be those of a law."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        for problem in _problems(seed):
            for beta in (0.2, 0.5):
                loss = population_loss(sppo_loss, problem, beta=beta)
                log_ratio = (win_probability(problem) - 0.5) / beta
                for policy, norms in (
                    (problem.reference + log_ratio, residuals),
                    (_game_tilt(problem, beta), controls),
                ):
                    point = policy.detach().clone().requires_grad_()
                    (gradient,) = torch.autograd.grad(loss(point), point)
                    norms.append(float(gradient.norm()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"three kinds of preferences, Y = {_NUM_COMPLETIONS}, beta = 0.2 and 0.5: gradient at most "
        f"{max(residuals):.0e}; at the tilted reference {min(controls):.2g} or more",
    )


def _balanced_law(problem: FiniteProblem, beta: float) -> Float[Tensor, " Y"]:
    """The law whose log-ratios g solve `g + nu * exp(g) = (win - 1/2) / beta` with one nu for all.

    With nu = 0 the probabilities sum to one or more, and they fall as nu grows.
    """
    target = (win_probability(problem) - 0.5) / beta

    def log_ratios(nu: float) -> Tensor:
        low, high = torch.full_like(target, -1e3), target.clamp(min=0) + 1
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_above = middle + nu * middle.exp() > target
            low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
        return low

    lowest, highest = 0.0, float(target.abs().max()) + 1
    for _ in range(_HALVINGS):
        nu = (lowest + highest) / 2
        total = (problem.reference + log_ratios(nu)).logsumexp(dim=0)
        lowest, highest = (nu, highest) if total > 0 else (lowest, nu)
    return problem.reference + log_ratios(lowest)


def sppo_shares_its_excess() -> Evidence:
    """SPPO's minimizer among laws against its balance, and against the tilt of the game."""
    residuals: list[float] = []
    controls: list[float] = []
    seen = []
    for beta in (0.1, 0.2, 0.5):
        distances = []
        for seed in _SEEDS:
            for problem in _problems(seed):
                loss = population_loss(sppo_loss, problem, beta=beta)
                found = minimize(loss, problem.reference)
                balanced, tilted = _balanced_law(problem, beta), _game_tilt(problem, beta)
                residuals.append(distance_of_minimum(found, balanced, uncertified=math.inf))
                distances.append(distance_of_minimum(found, tilted, uncertified=0.0))
        controls += distances
        seen.append(f"{min(distances):.1g} to {max(distances):.1g} at beta = {beta:g}")
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"three kinds of preferences, Y = {_NUM_COMPLETIONS}: TV at most {max(residuals):.0e}; "
        f"from the tilted reference {', '.join(seen)}",
    )


def _advantage_against(problem: FiniteProblem, law: Float[Tensor, " Y"]) -> float:
    """How far above one half some completion wins against a law; 0 at the equilibrium."""
    assert problem.preferences is not None, "a game has preferences"
    return float((problem.preferences @ law.exp()).max()) - 0.5


def sppo_rounds_approach_equilibrium() -> Evidence:
    """Rounds of SPPO on a cycle, each from the policy of the one before: their mean and the last.

    With rewards between 0 and 1 and steps of 1 / beta, exponential weights lag behind any fixed
    completion y by no more than `beta * log(1 / reference(y)) + T / (8 * beta)` in T rounds.
    """
    residuals: list[float] = []
    controls: list[float] = []
    curves: list[Curve] = []
    for seed, beta in ((0, 1.0), (1, 2.0)):
        game = cyclic_problem(_NUM_COMPLETIONS, seed)
        mean, last = _rounds(game, beta)
        lag = beta * float(-game.reference.min())
        bounds = [lag / number + 1 / (8 * beta) for number in range(1, _NUM_ROUNDS + 1)]
        residuals += [value - bound for value, bound in zip(mean, bounds, strict=True)]
        # The last policy goes round and round, and passes above the bound on its way.
        controls.append(max(value - bound for value, bound in zip(last, bounds, strict=True)))
        for what, values in (("mean of all rounds", mean), ("last round", last)):
            points = tuple((float(i), value) for i, value in enumerate(values, start=1))
            curves.append(Curve(f"{what}, beta = {beta:g}", points))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"cyclic preferences, Y = {_NUM_COMPLETIONS}, beta = 1 and 2, every T from 1 to "
        f"{_NUM_ROUNDS}: at least {-max(residuals):.3f} below the bound; some last round is at "
        f"least {min(controls):.3f} above it",
        plots=(
            Plot(
                "Rounds of SPPO on cyclic preferences",
                "rounds",
                "best completion's win probability less 1/2",
                tuple(curves),
                log_x=True,
                note="The policy of a round chases the circle; the mean of all settles.",
            ),
        ),
    )


def _rounds(game: FiniteProblem, beta: float) -> tuple[list[float], list[float]]:
    """The best completion's advantage against the mean of the first rounds, and the latest one."""
    policy = game.reference
    total = torch.zeros_like(policy)
    mean, last = [], []
    for number in range(1, _NUM_ROUNDS + 1):
        total = total + policy.exp()
        mean.append(_advantage_against(game, (total / number).log()))
        last.append(_advantage_against(game, policy))
        problem = dataclasses.replace(game, reference=policy, pair_law=independent_pairs(policy))
        found = minimize(population_loss(sppo_loss, problem, beta=beta), policy)
        if not is_certified(found):
            return [math.nan] * _NUM_ROUNDS, [math.nan] * _NUM_ROUNDS
        policy = found.policy
    return mean, last


def nca_doubles_the_win_rate() -> Evidence:
    """NCA's minimizer on pairs from the reference, at beta = 1 and beside it."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        for problem in _problems(seed):
            ratio = (2 * win_probability(problem)).log()
            residuals.append(abs(float((problem.reference + ratio).logsumexp(dim=0))))
            for beta, distances, uncertified in (
                (1.0, residuals, math.inf),
                (0.5, controls, 0.0),
            ):
                loss = population_loss(nca_loss, problem, beta=beta)
                found = minimize(loss, problem.reference)
                claimed = tilted_reference(problem.reference, ratio / beta)
                distances.append(distance_of_minimum(found, claimed, uncertified=uncertified))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"three kinds of preferences, Y = {_NUM_COMPLETIONS}: the law sums to one and is TV at "
        f"most {max(residuals):.0e} away; at beta = 1/2 {min(controls):.2g} to {max(controls):.2g}",
    )


def ipo_mean_tilts_by_length() -> Evidence:
    """Minimizers of IPO per token on completions of several lengths."""
    length = torch.tensor([1, 2, 3, 5, 8])
    residuals: list[float] = []
    controls: list[float] = []
    loss = with_lengths(ipo_mean_loss, length)
    for seed in _SEEDS:
        for problem in _problems(seed):
            for tau in (0.5, 1.0):
                found = minimize(population_loss(loss, problem, tau=tau), problem.reference)
                claimed = tilted_per_token(
                    problem.reference, win_probability(problem) / tau, length
                )
                residuals.append(distance_of_minimum(found, claimed, uncertified=math.inf))
                tilt = length * win_probability(problem) / tau
                other = tilted_reference(problem.reference, tilt)
                controls.append(distance_of_minimum(found, other, uncertified=0.0))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        "lengths 1, 2, 3, 5 and 8, three kinds of preferences, tau = 0.5 and 1: TV at most "
        f"{max(residuals):.0e}; without the constant {min(controls):.2g} or more",
    )


_SPPO = "Wu et al. 2024, arXiv:2405.00675"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="sppo_regresses_on_the_win_rate",
        claim="For any preferences SPPO's loss on hard labels is least where each log-ratio is "
        "(win probability - 1/2) / beta, if likelihoods need not sum to one.",
        control="It is least at the reference tilted by exp(win probability / beta), normalized.",
        source=f"{_SPPO}, eq. 4.6 and 4.7",
        methods=("sppo",),
        tolerance=1e-12,
        check=sppo_regresses_on_the_win_rate,
    ),
    Theorem(
        name="sppo_shares_its_excess",
        claim="Among laws SPPO's minimizer has log-ratios g with g + nu exp(g) = (win probability "
        "- 1/2) / beta and one nu for all: likely completions give up more.",
        control="It is the reference tilted by exp(win probability / beta), the next round of the "
        "paper's game.",
        source=f"derived here; the game is that of {_SPPO}",
        methods=("sppo",),
        tolerance=1e-8,
        check=sppo_shares_its_excess,
    ),
    Theorem(
        name="sppo_rounds_approach_equilibrium",
        claim="Against the mean of T rounds of SPPO no completion wins with a probability above "
        "1/2 by more than beta log(1 / smallest reference probability) / T + 1 / (8 beta).",
        control="So it is against the policy of the last round.",
        source=f"{_SPPO}, theorem 4.1; the constants are those of exponential weights",
        methods=("sppo",),
        tolerance=1e-3,
        check=sppo_rounds_approach_equilibrium,
    ),
    Theorem(
        name="nca_doubles_the_win_rate",
        claim="For any preferences NCA on pairs from the reference converges, at beta = 1, to the "
        "reference times twice the win probability, which sums to one.",
        control="At beta = 1/2 it converges to the reference times the square of that ratio, "
        "normalized.",
        source="Chen et al. 2024, arXiv:2402.05369; for pairs derived here",
        methods=("nca",),
        tolerance=1e-8,
        check=nca_doubles_the_win_rate,
    ),
    Theorem(
        name="ipo_mean_tilts_by_length",
        claim="IPO per token converges to the reference tilted by exp(length (win probability / "
        "tau + c)), with c such that it sums to one.",
        control="It is tilted by exp(length * win probability / tau), normalized.",
        source="derived here for the form of TRL; Azar et al. 2023, arXiv:2310.12036, eq. 17",
        methods=("ipo_mean",),
        tolerance=1e-8,
        check=ipo_mean_tilts_by_length,
    ),
)
