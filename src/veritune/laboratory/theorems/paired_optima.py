"""Objectives on pairs: what DPO and its kin converge to, and what it depends on."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.minimize import distance_of_minimum, is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import (
    bradley_terry_problem,
    cyclic_problem,
    deterministic_problem,
    noisy_problem,
    with_flipped_labels,
)
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.paired.dpo import dpo_loss, dpo_optimum
from veritune.objectives.paired.ipo import ipo_loss, ipo_optimum
from veritune.objectives.paired.rdpo import rdpo_loss
from veritune.objectives.paired.robust_dpo import robust_dpo_loss
from veritune.objectives.paired.rso_sigmoid_norm import (
    rso_sigmoid_norm_loss,
    rso_sigmoid_norm_optimum,
)
from veritune.seeds import stream

_SEEDS = (0, 1, 2)
_NUM_COMPLETIONS = 5


def _with_pairs_of_its_own(problem: FiniteProblem, seed: int) -> FiniteProblem:
    """The same preferences, asked of other pairs: a law that is no product of two."""
    size = problem.num_completions
    generator = stream(seed, "laboratory", "pair law")
    logits = 1.5 * torch.randn(size, size, generator=generator, dtype=torch.float64)
    law = logits.flatten().softmax(dim=0).view(size, size)
    return dataclasses.replace(problem, pair_law=(law + law.T) / 2)


def dpo_tilts_the_reference() -> Evidence:
    """Minimizers of DPO and of RSO's loss under Bradley-Terry preferences."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        assert problem.reward is not None, "a Bradley-Terry problem has a reward"
        for beta in (0.3, 1.0):
            rso = minimize(
                population_loss(rso_sigmoid_norm_loss, problem, gamma=beta), problem.reference
            )
            dpo = minimize(population_loss(dpo_loss, problem, beta=beta), problem.reference)
            for found, claimed in (
                (dpo, dpo_optimum(problem, beta=beta)),
                (rso, rso_sigmoid_norm_optimum(problem, gamma=beta)),
            ):
                residuals.append(distance_of_minimum(found, claimed, uncertified=math.inf))
            other = dpo_optimum(problem, beta=1.2 * beta)
            controls.append(distance_of_minimum(dpo, other, uncertified=0.0))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}, beta = 0.3 and 1: TV at most {max(residuals):.1e}",
    )


def dpo_depends_on_the_pairs() -> Evidence:
    """Minimizers of DPO for the same preferences under two laws of pairs."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        for problem, distances, uncertified in (
            (bradley_terry_problem(_NUM_COMPLETIONS, seed), residuals, math.inf),
            (cyclic_problem(_NUM_COMPLETIONS, seed), controls, 0.0),
        ):
            other = _with_pairs_of_its_own(problem, seed)
            first, second = (
                minimize(population_loss(dpo_loss, given, beta=1.0), problem.reference)
                for given in (problem, other)
            )
            between = distance_of_minimum(first, second.policy, uncertified=uncertified)
            distances.append(between if is_certified(second) else uncertified)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}: TV between the two minimizers at most {max(residuals):.1e}; for "
        f"cyclic preferences {min(controls):.3f} to {max(controls):.3f}",
    )


def ipo_tilts_by_the_win_probability() -> Evidence:
    """Minimizers of IPO for preferences of many kinds, pairs drawn independently or not."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        for problem in (
            bradley_terry_problem(_NUM_COMPLETIONS, seed),
            cyclic_problem(_NUM_COMPLETIONS, seed),
            deterministic_problem(_NUM_COMPLETIONS, seed),
            noisy_problem(_NUM_COMPLETIONS, seed, noise=0.2),
        ):
            dependent = _with_pairs_of_its_own(problem, seed)
            for given, distances, uncertified in (
                (problem, residuals, math.inf),
                (dependent, controls, 0.0),
            ):
                for tau in (0.1, 0.5):
                    found = minimize(population_loss(ipo_loss, given, tau=tau), given.reference)
                    claimed = ipo_optimum(given, tau=tau)
                    distances.append(distance_of_minimum(found, claimed, uncertified=uncertified))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        "Bradley-Terry, cyclic, deterministic and noisy preferences, tau = 0.1 and 0.5: TV at most "
        f"{max(residuals):.1e}; with dependent pairs {min(controls):.3f} to {max(controls):.3f}",
    )


def _largest_difference(
    first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], laws: Sequence[Tensor]
) -> float:
    return max(float((first(law) - second(law)).abs()) for law in laws)


def robust_dpo_is_dpo_on_flipped_labels() -> Evidence:
    """Expected losses of robust DPO and of DPO, at random policies."""
    residuals: list[float] = []
    controls: list[float] = []
    rests: list[float] = []
    for seed in _SEEDS:
        clean = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        laws = [bradley_terry_problem(_NUM_COMPLETIONS, 100 + k).reference for k in range(5)]
        for epsilon in (0.1, 0.3):
            flipped = with_flipped_labels(clean, epsilon)
            on_clean, on_flipped = (
                population_loss(robust_dpo_loss, given, beta=0.5, epsilon=epsilon)
                for given in (clean, flipped)
            )
            residuals.append(
                _largest_difference(on_clean, population_loss(dpo_loss, flipped, beta=0.5), laws)
            )
            controls.append(
                _largest_difference(on_flipped, population_loss(dpo_loss, clean, beta=0.5), laws)
            )
            found = minimize(on_flipped, clean.reference)
            claimed = dpo_optimum(clean, beta=0.5)
            rests.append(distance_of_minimum(found, claimed, uncertified=math.nan))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"epsilon = 0.1 and 0.3: largest difference {max(residuals):.1e} nats; trained on flipped "
        "labels, which smoothing flips once more, it rests TV "
        f"{min(rests):.2f} to {max(rests):.2f} from the optimum of clean labels",
    )


def rdpo_undoes_flipped_labels() -> Evidence:
    """Minimizers on labels that were flipped at the rate epsilon."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        clean = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        claimed = dpo_optimum(clean, beta=0.5)
        for epsilon in (0.1, 0.3):
            flipped = with_flipped_labels(clean, epsilon)
            for loss, distances, uncertified in (
                (rdpo_loss, residuals, math.inf),
                (robust_dpo_loss, controls, 0.0),
            ):
                expected = population_loss(loss, flipped, beta=0.5, epsilon=epsilon)
                found = minimize(expected, clean.reference)
                distances.append(distance_of_minimum(found, claimed, uncertified=uncertified))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"epsilon = 0.1 and 0.3, beta = 0.5: TV from the optimum of clean labels at most "
        f"{max(residuals):.1e} for rdpo, {min(controls):.2f} to {max(controls):.2f} for robust_dpo",
    )


def robust_dpo_has_a_finite_margin() -> Evidence:
    """Margins of two completions of which one always wins."""
    residuals: list[float] = []
    controls: list[float] = []
    problem = deterministic_problem(2, seed=0)
    assert problem.reward is not None, "the problem has a reward"
    beta, best = 0.5, int(problem.reward.argmax())
    for epsilon in (0.01, 0.1, 0.3):
        expected = population_loss(robust_dpo_loss, problem, beta=beta, epsilon=epsilon)
        tilt = torch.zeros(2, dtype=torch.float64)
        tilt[best] = math.log((1 - epsilon) / epsilon) / beta
        claimed = tilted_reference(problem.reference, tilt)
        found = minimize(expected, problem.reference)
        residuals.append(distance_of_minimum(found, claimed, uncertified=math.inf))
        endless = minimize(population_loss(dpo_loss, problem, beta=beta), problem.reference)
        ratio = endless.policy - problem.reference
        margin = beta * float(ratio[best] - ratio[1 - best])
        controls.append(abs(margin - math.log((1 - epsilon) / epsilon)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"epsilon = 0.01, 0.1 and 0.3: TV at most {max(residuals):.1e}; DPO's margin is "
        f"{margin:.0f} nats when its gradient falls below 1e-11",
    )


THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="dpo_tilts_the_reference",
        claim="Under Bradley-Terry preferences DPO, and RSO's sigmoid-norm, converge to the "
        "reference tilted by exp(reward / beta).",
        control="They converge to that of another beta.",
        source="Rafailov et al. 2023, arXiv:2305.18290, eq. 4; Liu et al. 2023, arXiv:2309.06657",
        methods=("dpo", "rso_sigmoid_norm"),
        tolerance=1e-8,
        check=dpo_tilts_the_reference,
    ),
    Theorem(
        name="dpo_depends_on_the_pairs",
        claim="Under Bradley-Terry preferences DPO converges to the same policy whatever pairs are "
        "compared.",
        control="It does so under cyclic preferences, too.",
        source="derived here; the model is that of arXiv:2305.18290",
        methods=("dpo",),
        tolerance=1e-7,
        check=dpo_depends_on_the_pairs,
    ),
    Theorem(
        name="ipo_tilts_by_the_win_probability",
        claim="For any preferences IPO converges to the reference tilted by exp(win probability / "
        "tau), if the two of a pair are drawn independently from one law.",
        control="It does so for dependent pairs, too.",
        source="Azar et al. 2023, arXiv:2310.12036, section 4",
        methods=("ipo",),
        tolerance=1e-8,
        check=ipo_tilts_by_the_win_probability,
    ),
    Theorem(
        name="robust_dpo_is_dpo_on_flipped_labels",
        claim="Robust DPO on clean labels is DPO on labels flipped with probability epsilon.",
        control="Robust DPO on labels flipped with probability epsilon is DPO on clean labels.",
        source="Mitchell 2023; derived here",
        methods=("robust_dpo", "dpo"),
        tolerance=1e-12,
        check=robust_dpo_is_dpo_on_flipped_labels,
    ),
    Theorem(
        name="rdpo_undoes_flipped_labels",
        claim="On labels flipped with probability epsilon, rDPO converges to the optimum of DPO on "
        "clean labels.",
        control="So does robust DPO, which smooths labels.",
        source="Chowdhury, Kini & Natarajan 2024, arXiv:2403.00409",
        methods=("rdpo",),
        contrasts=("robust_dpo",),
        tolerance=1e-8,
        check=rdpo_undoes_flipped_labels,
    ),
    Theorem(
        name="robust_dpo_has_a_finite_margin",
        claim="On a comparison that one completion always wins, robust DPO rests at the margin "
        "log((1 - epsilon) / epsilon).",
        control="So does DPO.",
        source="Mitchell 2023; derived here",
        methods=("robust_dpo",),
        contrasts=("dpo",),
        tolerance=1e-8,
        check=robust_dpo_has_a_finite_margin,
    ),
)
