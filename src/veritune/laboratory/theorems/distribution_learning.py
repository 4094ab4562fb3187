"""Alignment as distribution learning: targets, rates, and what collapses where they do not."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.distances import kl, total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.minimize import certified_policy, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import (
    bradley_terry_problem,
    cyclic_problem,
    independent_pairs,
    sampled_problem,
)
from veritune.laboratory.rates import fitted_slope
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.pmle import pmle_loss
from veritune.objectives.sampled.reverse_kl import reverse_kl_loss
from veritune.objectives.sampled.rloo import rloo_optimum
from veritune.objectives.scored.preference_distillation import preference_distillation_loss
from veritune.seeds import stream

_GAMMA = 1.0
_SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
_NUM_DRAWS = 120
_NUM_OTHERS = 15
_SOURCE = "Yun et al. 2025, arXiv:2506.01523"


def target_problem(num_completions: int, seed: int, *, sharpness: float = 1.0) -> FiniteProblem:
    """Preferences that a target model implies: P(y is preferred) = sigmoid(gamma log-odds).

    Both completions of a pair are drawn uniformly. The reward is gamma times the target's
    log-probability, so it is the Bradley-Terry reward, too.

    Args:
        num_completions: How many completions there are.
        seed: Of the target, whose log-probabilities are normal before they are normalized.
        sharpness: Their standard deviation.
    """
    problem = bradley_terry_problem(num_completions, seed)
    assert problem.reward is not None, "a Bradley-Terry problem has a reward"
    target = torch.log_softmax(sharpness * problem.reward / _GAMMA, dim=0)
    uniform = torch.full_like(target, -math.log(num_completions))
    reward = _GAMMA * target
    return dataclasses.replace(
        problem,
        reward=reward,
        preferences=torch.sigmoid(reward[:, None] - reward[None, :]),
        pair_law=independent_pairs(uniform),
    )


def target_of(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    """Log-probabilities of the model behind the preferences."""
    assert problem.reward is not None, "the target is the reward over gamma"
    return problem.reward / _GAMMA


def preference_maximum_likelihood(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    """What PMLE learns from the pairs of a problem."""
    return certified_policy(
        minimize(population_loss(pmle_loss, problem, gamma=_GAMMA), problem.reference)
    )


def direct_preference_optimization(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    """What DPO learns from the pairs of a problem, with gamma for its beta."""
    return certified_policy(
        minimize(population_loss(dpo_loss, problem, beta=_GAMMA), problem.reference)
    )


def _with_fitted_reward(problem: FiniteProblem) -> FiniteProblem | None:
    """The problem with the rewards of a preference model fitted to the pairs.

    The preference model is a table of rewards under the logistic likelihood, which is what PMLE
    fits with gamma = 1. None where the pairs have no finite fit.
    """
    model = certified_policy(
        minimize(population_loss(pmle_loss, problem, gamma=1.0), problem.reference)
    )
    return dataclasses.replace(problem, reward=model) if model.isfinite().all() else None


def _nothing(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    return torch.full_like(problem.reference, torch.nan)


def preference_distillation(
    problem: FiniteProblem, *, gamma: float = _GAMMA
) -> Float[Tensor, " Y"]:
    """What PD learns: soft labels of the fitted preference model on fresh pairs."""
    fitted = _with_fitted_reward(problem)
    if fitted is None:
        return _nothing(problem)
    loss = population_loss(preference_distillation_loss, fitted, gamma=gamma)
    return certified_policy(minimize(loss, problem.reference))


def reverse_kl(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    """What the reverse KL to the fitted preference model learns."""
    fitted = _with_fitted_reward(problem)
    if fitted is None:
        return _nothing(problem)
    loss = population_loss(reverse_kl_loss, fitted, group_size=1, gamma=_GAMMA)
    return certified_policy(minimize(loss, problem.reference))


def reinforcement_learning(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    """What RLHF, with gamma for its beta, learns from the fitted preference model."""
    fitted = _with_fitted_reward(problem)
    return _nothing(problem) if fitted is None else rloo_optimum(fitted, beta=_GAMMA)


Learner = Callable[[FiniteProblem], Float[Tensor, " Y"]]

LEARNERS: dict[str, Learner] = {
    "pmle": preference_maximum_likelihood,
    "preference_distillation": preference_distillation,
    "reverse_kl": reverse_kl,
}


def rate(
    name: str, learner: Learner, num_draws: int, *, other_name: str, other: Learner
) -> Evidence:
    """KL to the target over the number of pairs, fitted by a power of n, for two learners.

    The other learns from the first draws of the same pairs.
    """
    # A flat target: with a hundred pairs every completion wins and loses at least once. If one did
    # not, there would be no finite estimate, and the slope would be no number.
    problem = target_problem(8, seed=3, sharpness=0.3)
    target = target_of(problem)
    generator = stream(0, "laboratory", "rate", name)
    samples = [
        [sampled_problem(problem, size, generator) for _ in range(num_draws)] for size in _SIZES
    ]
    errors = [[kl(target, learner(sample)) for sample in drawn] for drawn in samples]
    others = [[kl(target, other(sample)) for sample in drawn[:_NUM_OTHERS]] for drawn in samples]
    slope, other_slope = fitted_slope(_SIZES, errors), fitted_slope(_SIZES, others)
    means, other_means = _means(errors), _means(others)
    constants = [n * mean for n, mean in zip(_SIZES, means, strict=True)]
    sizes = [float(size) for size in _SIZES]
    curves = (
        Curve(f"{name}: slope {slope}", tuple(zip(sizes, means, strict=True)), "marked"),
        Curve(
            f"{other_name}: slope {other_slope.value:.2f}",
            tuple(zip(sizes, other_means, strict=True)),
            "marked",
        ),
        Curve("1 / n", tuple((n, constants[-1] / n) for n in sizes), "guide"),
    )
    return Evidence(
        residual=abs(slope.value + 1),
        control=abs(other_slope.value + 1),
        detail=f"slope {slope} over n = {_SIZES[0]:,} to {_SIZES[-1]:,}, {num_draws} draws each; "
        f"n * KL is {min(constants):.2f} to {max(constants):.2f}; {other_name} on {_NUM_OTHERS} of "
        f"them: slope {other_slope.value:.2f}, KL {other_means[-1]:.2g} from {_SIZES[-1]:,} pairs",
        plots=(
            Plot(
                f"Distance of {name} from the target",
                "pairs n",
                "KL(target || learned) (nats)",
                curves,
                log_x=True,
                log_y=True,
                note=f"Mean over draws; the dashed line falls as 1 / n. {other_name} converges to "
                "another law.",
            ),
        ),
    )


def _means(values: list[list[float]]) -> list[float]:
    return [math.fsum(drawn) / len(drawn) for drawn in values]


def pmle_rate() -> Evidence:
    """The rate of preference maximum likelihood, and of DPO on the same pairs."""
    return rate(
        "pmle",
        preference_maximum_likelihood,
        _NUM_DRAWS,
        other_name="DPO",
        other=direct_preference_optimization,
    )


def preference_distillation_rate() -> Evidence:
    """The rate of preference distillation, and of it with a gamma that is not the link's."""
    return rate(
        "preference_distillation",
        preference_distillation,
        _NUM_DRAWS // 2,
        other_name=f"PD with gamma = {2 * _GAMMA:g}",
        other=partial(preference_distillation, gamma=2 * _GAMMA),
    )


def reverse_kl_rate() -> Evidence:
    """The rate of reverse-KL minimization, and of RLHF on the same preference models."""
    return rate(
        "reverse_kl",
        reverse_kl,
        _NUM_DRAWS // 2,
        other_name="RLHF",
        other=reinforcement_learning,
    )


def three_objectives_agree() -> Evidence:
    """On one table and one set of pairs the three objectives have one minimizer."""
    problem = target_problem(8, seed=3)
    generator = stream(0, "laboratory", "three-objectives")
    residuals, controls = [], []
    for _ in range(3):
        sampled = sampled_problem(problem, 3_000, generator)
        policies = [learner(sampled) for learner in LEARNERS.values()]
        residuals += [total_variation(policies[0], policy) for policy in policies[1:]]
        controls.append(total_variation(policies[0], target_of(problem)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"n = 3,000 pairs, Y = 8: TV between the three at most {max(residuals):.1e}, to the target "
        f"at least {min(controls):.2g}",
    )


def the_law_of_the_pairs_does_not_matter() -> Evidence:
    """PMLE's population optimum is the target under any law of pairs; DPO's is off-model not."""
    laws = [bradley_terry_problem(6, seed).reference for seed in (11, 12, 13)]
    residuals: list[float] = []
    for seed in (0, 1):
        problem = target_problem(6, seed)
        for law in laws:
            other = dataclasses.replace(problem, pair_law=independent_pairs(law))
            residuals.append(
                total_variation(preference_maximum_likelihood(other), target_of(problem))
            )
    cyclic = cyclic_problem(6, seed=0)
    off_model = [
        preference_maximum_likelihood(dataclasses.replace(cyclic, pair_law=independent_pairs(law)))
        for law in laws
    ]
    controls = [total_variation(off_model[0], policy) for policy in off_model[1:]]
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"three laws of pairs: TV to the target at most {max(residuals):.1e}; where no model "
        f"explains the preferences the minimizers differ by TV {min(controls):.2g} or more",
    )


def rlhf_collapses_where_reverse_kl_does_not() -> Evidence:
    """RLHF on the target's log-probabilities ends at the mode as beta falls; RKL keeps it."""
    problem = target_problem(8, seed=3)
    target = target_of(problem)
    found = certified_policy(
        minimize(
            population_loss(reverse_kl_loss, problem, group_size=1, gamma=_GAMMA),
            problem.reference,
        )
    )
    betas = (1.0, 0.3, 0.1, 0.03, 0.01)
    optima = [rloo_optimum(problem, beta=beta) for beta in betas]
    largest = [float(policy.exp().max()) for policy in optima]
    collapse = Curve("RLHF", tuple(zip(betas, largest, strict=True)), "marked")
    kept = float(found.exp().max())
    flat = Curve("reverse_kl", tuple((beta, kept) for beta in betas))
    return Evidence(
        total_variation(found, target),
        total_variation(optima[-1], target),
        f"largest probability {kept:.3f} under reverse_kl; under RLHF "
        + ", ".join(f"{p:.3f} at beta {b:g}" for b, p in zip(betas, largest, strict=True)),
        plots=(
            Plot(
                "The most probable completion at the optimum",
                "beta of RLHF",
                "largest probability",
                (collapse, flat),
                log_x=True,
                note="With the target's own log-probabilities as the reward, RLHF puts all on one "
                "completion as beta falls.",
            ),
        ),
    )


def dpo_tilts_the_reference_by_the_target() -> Evidence:
    """DPO on the same preferences converges to reference * target^(gamma / beta)."""
    residuals, controls = [], []
    for seed in (0, 1, 2):
        problem = target_problem(6, seed)
        loss = population_loss(dpo_loss, problem, beta=0.5)
        found = certified_policy(minimize(loss, problem.reference))
        claimed = tilted_reference(problem.reference, _GAMMA / 0.5 * target_of(problem))
        residuals.append(total_variation(found, claimed))
        controls.append(total_variation(found, target_of(problem)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"TV to the claim at most {max(residuals):.1e}, to the target at least {min(controls):.2g}",
    )


THEOREMS = (
    Theorem(
        name="pmle_rate",
        claim="Preference maximum likelihood converges to the target model at rate O(1/n) in KL.",
        control="So does DPO on the same pairs.",
        source=_SOURCE,
        methods=("pmle",),
        contrasts=("dpo",),
        tolerance=0.04,
        check=pmle_rate,
    ),
    Theorem(
        name="preference_distillation_rate",
        claim="Preference distillation converges to the target model at rate O(1/n) in KL.",
        control="So it does with twice the gamma of the preferences.",
        source=_SOURCE,
        methods=("preference_distillation",),
        tolerance=0.04,
        check=preference_distillation_rate,
    ),
    Theorem(
        name="reverse_kl_rate",
        claim="Reverse-KL minimization converges to the target model at rate O(1/n) in KL.",
        control="So does RLHF on the same preference models.",
        source=_SOURCE,
        methods=("reverse_kl",),
        contrasts=("rloo",),
        tolerance=0.04,
        check=reverse_kl_rate,
    ),
    Theorem(
        name="three_objectives_agree",
        claim="A table learns one and the same policy by PMLE, PD and RKL from one set of pairs.",
        control="It is the target already, not an estimate of it.",
        source=f"derived here; the objectives: {_SOURCE}",
        methods=("pmle", "preference_distillation", "reverse_kl"),
        tolerance=1e-7,
        check=three_objectives_agree,
    ),
    Theorem(
        name="the_law_of_the_pairs_does_not_matter",
        claim="PMLE's optimum is the target model whatever law draws the pairs, if it explains the "
        "preferences.",
        control="So it is where no model explains them.",
        source=_SOURCE,
        methods=("pmle",),
        tolerance=1e-7,
        check=the_law_of_the_pairs_does_not_matter,
    ),
    Theorem(
        name="rlhf_collapses_where_reverse_kl_does_not",
        claim="With the target's log-probabilities as the reward, reverse_kl keeps the target.",
        control="RLHF with a small beta keeps it.",
        source=_SOURCE,
        methods=("reverse_kl",),
        contrasts=("rloo",),
        tolerance=1e-8,
        check=rlhf_collapses_where_reverse_kl_does_not,
    ),
    Theorem(
        name="dpo_tilts_the_reference_by_the_target",
        claim="DPO on the preferences of a target model converges to the reference times a power "
        "of the target.",
        control="It converges to the target.",
        source=f"Rafailov et al. 2023, arXiv:2305.18290, eq. 4, under the link of {_SOURCE}",
        methods=("dpo",),
        tolerance=1e-7,
        check=dpo_tilts_the_reference_by_the_target,
    ),
)
