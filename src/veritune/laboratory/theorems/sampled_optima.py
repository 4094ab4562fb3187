"""Distribution learning on samples of the policy: what it minimizes, and where it comes to rest."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.distances import kl, total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.fresh_samples import fresh_gradient
from veritune.laboratory.minimize import Minimum, is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.sampled.online_preference_distillation import (
    online_preference_distillation_loss,
)
from veritune.objectives.sampled.reverse_kl import reverse_kl_loss
from veritune.objectives.sampled.reverse_kl_regularized import reverse_kl_regularized_loss
from veritune.seeds import stream

_SEEDS = (0, 1, 2)
_GAMMAS = (0.5, 1.0)
_KL_WEIGHTS = (0.1, 1.0, 4.0)
_NUM_COMPLETIONS = 5
_NUM_POLICIES = 50


def _reward(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    assert problem.reward is not None, "a Bradley-Terry problem has a reward"
    return problem.reward


def _model(problem: FiniteProblem, gamma: float) -> Float[Tensor, " Y"]:
    """The law behind the preferences."""
    return torch.log_softmax(_reward(problem) / gamma, dim=0)


def _other_law(seed: int) -> Float[Tensor, " Y"]:
    """One that the problem of the seed has no part in."""
    return bradley_terry_problem(_NUM_COMPLETIONS, seed + 100).reference


def _distance(found: Minimum, claimed: Float[Tensor, " Y"]) -> float:
    """Total variation from what is claimed; infinite without a certificate."""
    return total_variation(found.policy, claimed) if is_certified(found) else math.inf


def _policies(seed: int) -> Float[Tensor, "S Y"]:
    """Log-probabilities all over the simplex, some of them near its boundary."""
    generator = stream(seed, "laboratory", "policies on samples")
    shape = (_NUM_POLICIES, _NUM_COMPLETIONS)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(dim=1)


def online_distillation_rests_at_the_model() -> Evidence:
    """Gradients on fresh samples at the model and elsewhere, and minimizers on given samples."""
    residuals: list[float] = []
    controls: list[float] = []
    least = math.inf
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        for gamma in _GAMMAS:
            model = _model(problem, gamma)
            tilted = tilted_reference(problem.reference, _reward(problem) / gamma)
            for size in (2, 3):
                for place, values in ((model, residuals), (tilted, controls)):
                    gradient = fresh_gradient(
                        online_preference_distillation_loss,
                        problem,
                        place,
                        group_size=size,
                        gamma=gamma,
                    )
                    values.append(float(gradient.norm()))
            for policy in _policies(seed):
                gradient = fresh_gradient(
                    online_preference_distillation_loss, problem, policy, gamma=gamma
                )
                # A step against the gradient comes nearer to the model.
                least = smallest_control([least, float(gradient @ (policy - model))])
            for behavior in (problem.reference, _other_law(seed), model):
                loss = population_loss(
                    online_preference_distillation_loss, problem, behavior=behavior, gamma=gamma
                )
                found = minimize(loss, problem.reference)
                residuals.append(_distance(found, model))
                controls.append(total_variation(found.policy, tilted))
    count = _NUM_POLICIES * len(_SEEDS) * len(_GAMMAS)
    return Evidence(
        largest_residual(residuals) if least > 0 else math.inf,
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}, gamma = 0.5 and 1: gradient norm on fresh groups of 2 and 3, and "
        f"TV of the minimizers on samples of three laws, at most {max(residuals):.0e}; at {count} "
        f"other policies the gradient points away from the model; at the tilted reference "
        f"{min(controls):.2g} or more",
    )


def regularized_reverse_kl_is_two_divergences() -> Evidence:
    """Differences of the expected loss against those of the divergences, off-policy too."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        reference, model = problem.reference, _model(problem, 0.7)
        first, second, behavior = (
            bradley_terry_problem(_NUM_COMPLETIONS, seed + k).reference for k in (100, 200, 300)
        )
        for weight in _KL_WEIGHTS:
            fit = kl(first, model) - kl(second, model)
            reverse = kl(first, reference) - kl(second, reference)
            forward = kl(reference, first) - kl(reference, second)
            for drawn_from in (reference, behavior, first):
                loss = population_loss(
                    reverse_kl_regularized_loss,
                    problem,
                    behavior=drawn_from,
                    gamma=0.7,
                    kl_weight=weight,
                )
                difference = float(loss(first) - loss(second))
                residuals.append(abs(difference - (fit + weight * reverse)))
                controls.append(abs(difference - (fit + weight * forward)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        "three behaviors, the policy's own among them, kl_weight = 0.1, 1 and 4, in nats: at most "
        f"{max(residuals):.0e}; with KL(reference || policy) at least {min(controls):.2g}",
    )


def regularized_reverse_kl_rests_between() -> Evidence:
    """Minimizers, and gradients on fresh samples, against the geometric mean."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        for gamma in _GAMMAS:
            plain = minimize(
                population_loss(reverse_kl_loss, problem, gamma=gamma), problem.reference
            )
            for weight in _KL_WEIGHTS:
                mean = _model(problem, gamma) + weight * problem.reference
                mean = torch.log_softmax(mean / (1 + weight), dim=0)
                given: dict[str, Any] = {"gamma": gamma, "kl_weight": weight}
                for behavior in (problem.reference, _other_law(seed)):
                    loss = population_loss(
                        reverse_kl_regularized_loss, problem, behavior=behavior, **given
                    )
                    residuals.append(_distance(minimize(loss, problem.reference), mean))
                gradient = fresh_gradient(reverse_kl_regularized_loss, problem, mean, **given)
                residuals.append(float(gradient.norm()))
                controls.append(_distance(plain, mean) if is_certified(plain) else 0.0)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"gamma = 0.5 and 1, kl_weight = 0.1, 1 and 4: TV of the minimizers on samples of two "
        f"laws, and gradient norm on fresh ones, at most {max(residuals):.0e}; reverse_kl ends "
        f"{min(controls):.2g} or more away",
    )


_SOURCE = "Yun et al. 2025, arXiv:2506.01523"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="online_distillation_finds_the_model",
        claim="Preference distillation on samples of the policy rests at the law proportional to "
        "exp(reward / gamma) and nowhere else, and that law is its minimizer on samples of any "
        "law.",
        control="It rests at the reference tilted by exp(reward / gamma).",
        source=f"{_SOURCE}; the minimizer on samples of any law is derived here",
        methods=("online_preference_distillation",),
        tolerance=1e-8,
        check=online_distillation_rests_at_the_model,
    ),
    Theorem(
        name="regularized_reverse_kl_is_two_kls",
        claim="The expected loss of reverse_kl_regularized is KL(policy || model) + kl_weight * "
        "KL(policy || reference) up to a constant, whatever law drew the samples.",
        control="The penalty is KL(reference || policy).",
        source=f"{_SOURCE}; the importance weights are derived here",
        methods=("reverse_kl_regularized",),
        tolerance=1e-10,
        check=regularized_reverse_kl_is_two_divergences,
    ),
    Theorem(
        name="regularized_reverse_kl_rests_between",
        claim="reverse_kl_regularized converges to the geometric mean of the model behind the "
        "preferences and the reference, with weights 1 and kl_weight.",
        control="So does reverse_kl.",
        source=f"{_SOURCE}; derived here",
        methods=("reverse_kl_regularized",),
        contrasts=("reverse_kl",),
        tolerance=1e-8,
        check=regularized_reverse_kl_rests_between,
    ),
)
