"""Density ratios of labelled completions: where RDRO, DDRO and their variants come to rest."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.distances import total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.labels import class_laws, joint_problem
from veritune.laboratory.minimize import (
    Minimum,
    distance_of_minimum,
    is_certified,
    minimize,
)
from veritune.laboratory.outcomes import with_labels
from veritune.laboratory.population import PopulationLoss, population_loss
from veritune.laboratory.problems import (
    bradley_terry_problem,
    cyclic_problem,
    disjoint_problem,
    mixture,
    mixture_problem,
)
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.objectives.optimum import FiniteProblem, win_probability
from veritune.objectives.unpaired.ddro import ddro_loss
from veritune.objectives.unpaired.ddro_lsif import ddro_lsif_loss
from veritune.objectives.unpaired.ddro_stabilized import ddro_stabilized_loss
from veritune.objectives.unpaired.ddro_unweighted import ddro_unweighted_loss
from veritune.objectives.unpaired.rdro import rdro_loss
from veritune.objectives.unpaired.rdro_kliep import rdro_kliep_loss
from veritune.objectives.unpaired.rdro_lsif import rdro_lsif_loss
from veritune.objectives.unpaired.rdro_pooled import rdro_pooled_loss

_NUM_COMPLETIONS = 8
_FRACTIONS = (0.2, 0.39, 0.5, 0.8)
_OVERLAP = 0.002
_SEEDS = (0, 1, 2)
_UNSURE_SEEDS = (0, 2, 3)
"""With shares of 0.3 and 0.5 no completion of these mixtures is desirable with a probability above
0.95, where stabilized DDRO departs from DDRO."""


def _mixed(seed: int, fraction: float) -> FiniteProblem:
    return mixture_problem(_NUM_COMPLETIONS, seed, desirable_fraction=fraction)


def _separated(seed: int, fraction: float, overlap: float = _OVERLAP) -> FiniteProblem:
    return disjoint_problem(_NUM_COMPLETIONS, seed, desirable_fraction=fraction, overlap=overlap)


def _with_other_reference(problem: FiniteProblem, seed: int) -> FiniteProblem:
    other = bradley_terry_problem(problem.num_completions, seed).reference
    return dataclasses.replace(problem, reference=other)


def _distance(found: Minimum, law: Float[Tensor, " Y"], *, uncertified: float) -> float:
    # A law of labelled completions may have zeros.
    return distance_of_minimum(found, law, uncertified=uncertified, may_lie_on_boundary=True)


def _distance_to_desirable(
    loss: Callable[..., Tensor],
    problem: FiniteProblem,
    *,
    uncertified: float,
    **hyperparameters: Any,
) -> float:
    found = minimize(population_loss(loss, problem, **hyperparameters), problem.reference)
    return _distance(found, class_laws(problem).desirable, uncertified=uncertified)


def rdro_recovers_the_desirable_law() -> Evidence:
    """RDRO's minimizer against p+, under the mixture and under another reference."""
    residuals, controls = [], []
    for alpha in _FRACTIONS:
        for seed in _SEEDS:
            mixed = _mixed(seed, alpha)
            for problem in (mixed, _separated(seed, alpha), _separated(seed, alpha, 0.0)):
                residuals.append(
                    _distance_to_desirable(rdro_loss, problem, uncertified=math.inf, alpha=alpha)
                )
            other = _with_other_reference(mixed, seed)
            controls.append(_distance_to_desirable(rdro_loss, other, uncertified=0.0, alpha=alpha))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"alpha 0.2, 0.39, 0.5, 0.8; Y = {_NUM_COMPLETIONS}; laws that overlap, that share "
        f"{_OVERLAP} and that share nothing: TV at most {max(residuals):.0e}; under another "
        f"reference {min(controls):.2f} to {max(controls):.2f}",
    )


def ratio_is_bounded() -> Evidence:
    """The largest ratio of RDRO's minimizer to the reference, times alpha, less one."""
    residuals, controls, seen = [], [], []
    for alpha in _FRACTIONS:
        largest = 0.0
        for seed in _SEEDS:
            for problem in (_mixed(seed, alpha), _separated(seed, alpha, 0.0)):
                found = minimize(
                    population_loss(rdro_loss, problem, alpha=alpha), problem.reference
                )
                ratio = (found.policy - problem.reference).exp()
                never_undesirable = class_laws(problem).undesirable == -math.inf
                if never_undesirable.any():
                    excess = float((alpha * ratio[never_undesirable] - 1).abs().max())
                else:
                    excess = float(alpha * ratio.max()) - 1
                    largest = max(largest, float(ratio.max()))
                certified = is_certified(found, may_lie_on_boundary=True)
                residuals.append(excess if certified else math.inf)
            laws = class_laws(_separated(seed, alpha))
            controls.append(float((laws.desirable - laws.undesirable).exp().max()) * alpha - 1)
        seen.append(f"{largest:.2f} <= {1 / alpha:.2f}")
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}; random laws: {', '.join(seen)}; disjoint laws: 1 / alpha on "
        f"every desirable completion; alpha * ratio passes 1 by at most {max(residuals):.0e}; "
        f"alpha * p+ / p- of laws that share {_OVERLAP} by at least {min(controls):.0f}",
    )


_Member = tuple[Callable[..., Tensor], str, bool]
_MEMBERS: tuple[_Member, ...] = (
    (rdro_lsif_loss, "alpha", True),
    (rdro_kliep_loss, "alpha", True),
    (ddro_loss, "t", True),
    (ddro_unweighted_loss, "t", True),
    # Of laws that hardly overlap, ratios near 1000 enter by their squares: Newton finds no rest.
    (ddro_lsif_loss, "t", False),
    # There the tangent takes over: `stabilized_needs_unsure_labels`.
    (ddro_stabilized_loss, "t", False),
)
"""Loss, the name of its share of desirable completions, whether it is tried where laws hardly
overlap."""


def members_share_the_optimum() -> Evidence:
    """The minimizers of RDRO's other criteria, and of DDRO in all forms, against p+."""
    residuals, controls = [], []
    for fraction in (0.3, 0.5):
        for seed in _UNSURE_SEEDS:
            mixed = _mixed(seed, fraction)
            other = _with_other_reference(mixed, seed)
            for loss, name, is_for_separated in _MEMBERS:
                given = {name: fraction}
                for problem in (mixed, _separated(seed, fraction))[: 1 + is_for_separated]:
                    residuals.append(
                        _distance_to_desirable(loss, problem, uncertified=math.inf, **given)
                    )
                controls.append(_distance_to_desirable(loss, other, uncertified=0.0, **given))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"alpha = t = 0.3 and 0.5; Y = {_NUM_COMPLETIONS}; laws that overlap and, but for "
        f"ddro_lsif and ddro_stabilized, that share {_OVERLAP}: TV at most {max(residuals):.0e}; "
        f"under another reference at least {min(controls):.2f}",
    )


def stabilized_needs_unsure_labels() -> Evidence:
    """The minimizer of stabilized DDRO against p+, with delta small enough and not."""
    residuals, controls = [], []
    for t in (0.3, 0.5):
        for seed in _UNSURE_SEEDS:
            mixed, separated = _mixed(seed, t), _separated(seed, t)
            # A completion of the reference is undesirable with probability (1 - t) p- / reference.
            laws = class_laws(separated)
            surest = (1 - t) * float((laws.undesirable - separated.reference).exp().min())
            for problem, delta in ((mixed, 0.05), (separated, surest / 2)):
                residuals.append(
                    _distance_to_desirable(
                        ddro_stabilized_loss, problem, uncertified=math.inf, t=t, delta=delta
                    )
                )
            controls.append(
                _distance_to_desirable(
                    ddro_stabilized_loss, separated, uncertified=0.0, t=t, delta=0.05
                )
            )
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"t = 0.3 and 0.5; Y = {_NUM_COMPLETIONS}: TV at most {max(residuals):.0e}; with delta = "
        f"0.05 and laws that share {_OVERLAP}, {min(controls):.3f} to {max(controls):.3f}",
    )


def pooled_mean_needs_balance() -> Evidence:
    """The minimizer of the pooled mean against p+, at alpha = 1/2 and elsewhere."""
    residuals: list[float] = []
    controls: list[float] = []
    seen = []
    for alpha in _FRACTIONS:
        is_balanced = alpha == 0.5
        distances = [
            _distance_to_desirable(
                rdro_pooled_loss,
                _mixed(seed, alpha),
                uncertified=math.inf if is_balanced else 0.0,
                alpha=alpha,
            )
            for seed in _SEEDS
        ]
        (residuals if is_balanced else controls).extend(distances)
        seen.append(f"{min(distances):.2f} to {max(distances):.2f} at {alpha}")
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}; TV by alpha: {', '.join(seen)}",
    )


def pooled_mean_has_its_own_ratio() -> Evidence:
    """The gradient of the pooled loss over free ratios, at its own optimum and at RDRO's."""
    residuals, controls = [], []
    for alpha in _FRACTIONS:
        for seed in _SEEDS:
            # Ratios that need not sum to one against any reference: the loss is convex in each.
            problem = _with_other_reference(_mixed(seed, alpha), seed)
            laws = class_laws(problem)
            loss = population_loss(rdro_pooled_loss, problem, alpha=alpha)
            up, down = laws.desirable.exp(), laws.undesirable.exp()
            own = up / (alpha * up + (1 - alpha) ** 2 / alpha * down)
            relative = up / (alpha * up + (1 - alpha) * down)
            residuals.append(_gradient_norm(loss, problem.reference + own.log()))
            if alpha != 0.5:
                controls.append(_gradient_norm(loss, problem.reference + relative.log()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"alpha 0.2, 0.39, 0.5, 0.8; Y = {_NUM_COMPLETIONS}: gradient over log-ratios at most "
        f"{max(residuals):.0e}; at RDRO's ratio, alpha = 1/2 aside, at least {min(controls):.3f}",
    )


def _gradient_norm(loss: PopulationLoss, policy: Float[Tensor, " Y"]) -> float:
    """Of a loss by log-probabilities that need not be those of a law."""
    point = policy.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    return float(gradient.norm())


def winners_of_a_cycle() -> Evidence:
    """RDRO on the winners and losers of pairs from the reference, with cyclic preferences."""
    residuals, controls = [], []
    for seed in _SEEDS:
        cycle = cyclic_problem(_NUM_COMPLETIONS - 1, seed)
        assert cycle.preferences is not None, "a cyclic problem has preferences"
        problem = with_labels(cycle)
        target = cycle.reference + (2 * win_probability(cycle)).log()
        laws = class_laws(problem)
        residuals.append(abs(float(target.exp().sum()) - 1))
        mixed = mixture(laws.desirable, laws.undesirable, 0.5)
        residuals.append(total_variation(mixed, cycle.reference))
        against_uniform = cycle.preferences.mean(dim=1)
        other = (cycle.reference + against_uniform.log()).log_softmax(dim=0)
        for loss in (rdro_loss, rdro_pooled_loss):
            found = minimize(population_loss(loss, problem, alpha=0.5), problem.reference)
            residuals.append(_distance(found, target, uncertified=math.inf))
            controls.append(_distance(found, other, uncertified=0.0))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS - 1} on a circle: TV at most {max(residuals):.0e}; from the law by "
        f"win probability against uniform opponents at least {min(controls):.2f}",
    )


def _minimum_on_prompt(joint: FiniteProblem, num_prompts: int, number: int) -> Minimum:
    """RDRO's minimizer on one prompt, where alpha and class means are those of all prompts.

    A policy is a law on every prompt, so the joint loss is a sum over prompts; it is minimized on
    one and the others are held.
    """
    expected = population_loss(rdro_loss, joint, alpha=class_laws(joint).fraction)
    parts = joint.reference.chunk(num_prompts)
    log_share = -math.log(num_prompts)

    def of_prompt(policy: Tensor) -> Tensor:
        mine = policy + log_share
        return expected(torch.cat([*parts[:number], mine, *parts[number + 1 :]]))

    return minimize(of_prompt, parts[number] - log_share)


def one_alpha_for_all_prompts() -> Evidence:
    """RDRO's minimizers on two prompts, with label rates that are equal and that are not."""
    residuals: list[float] = []
    controls: list[float] = []
    seen = []
    for seed in _SEEDS:
        for rates in ((0.577, 0.577), (0.259, 0.895)):
            is_equal = rates[0] == rates[1]
            prompts = [_mixed(10 * seed + number, rate) for number, rate in enumerate(rates)]
            joint = joint_problem(prompts)
            distances = [
                _distance(
                    _minimum_on_prompt(joint, len(prompts), number),
                    class_laws(prompt).desirable,
                    uncertified=math.inf if is_equal else 0.0,
                )
                for number, prompt in enumerate(prompts)
            ]
            (residuals if is_equal else controls).append(max(distances))
            if not is_equal:
                seen.append(" and ".join(f"{distance:.3f}" for distance in distances))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"alpha 0.577 and Y = {_NUM_COMPLETIONS} on each of two prompts: TV at most "
        f"{max(residuals):.0e} where both have that rate; {'; '.join(seen)} where the rates are "
        "0.259 and 0.895",
    )


_RDRO = "Takahashi et al. 2026, arXiv:2604.04410"
_DDRO = "Higuchi and Suzuki 2025, arXiv:2505.07558"

THEOREMS = (
    Theorem(
        name="rdro_recovers_the_desirable_law",
        claim="RDRO's minimizer is the law of desirable completions if the reference is the "
        "mixture that was labelled, even where the two laws share no completion.",
        control="It is so under any reference.",
        source=f"{_RDRO}; the condition on the reference is derived here",
        methods=("rdro",),
        tolerance=1e-9,
        check=rdro_recovers_the_desirable_law,
    ),
    Theorem(
        name="rdro_ratio_is_bounded",
        claim="The ratio policy / reference at RDRO's minimizer never exceeds 1 / alpha, and "
        "equals it where a completion is never undesirable.",
        control="The ratio p+ / p- that DDRO estimates has that bound.",
        source=_RDRO,
        methods=("rdro",),
        contrasts=("ddro",),
        tolerance=1e-9,
        check=ratio_is_bounded,
    ),
    Theorem(
        name="density_ratio_members_share_the_optimum",
        claim="RDRO by least squares or by the Kullback-Leibler criterion, and DDRO by the "
        "logistic criterion, weighted or not, stabilized, or by least squares, all have the law of "
        "desirable completions as their minimizer if the reference is the mixture.",
        control="They have it under any reference.",
        source=f"{_RDRO}; {_DDRO}; the members are derived here",
        methods=(
            "rdro_lsif",
            "rdro_kliep",
            "ddro",
            "ddro_unweighted",
            "ddro_lsif",
            "ddro_stabilized",
        ),
        tolerance=1e-8,
        check=members_share_the_optimum,
    ),
    Theorem(
        name="ddro_stabilized_needs_unsure_labels",
        claim="Stabilized DDRO keeps DDRO's minimizer as long as every completion is undesirable "
        "with a probability of more than delta.",
        control="It keeps it with delta = 0.05 where the laws are nearly disjoint.",
        source="derived here; the continuation is Veritune's",
        methods=("ddro_stabilized",),
        tolerance=1e-8,
        check=stabilized_needs_unsure_labels,
    ),
    Theorem(
        name="rdro_pooled_needs_balance",
        claim="With one mean over all examples, as in the released trainer, RDRO's minimizer is "
        "the law of desirable completions if alpha is one half.",
        control="It is so for any alpha.",
        source=f"{_RDRO}, released code; the bias is derived here",
        methods=("rdro_pooled",),
        tolerance=1e-9,
        check=pooled_mean_needs_balance,
    ),
    Theorem(
        name="rdro_pooled_has_its_own_ratio",
        claim="With one mean over all examples, the ratio that RDRO fits is "
        "p+ / (alpha p+ + (1 - alpha)^2 / alpha p-).",
        control="It is RDRO's, p+ / (alpha p+ + (1 - alpha) p-).",
        source=f"{_RDRO}, released code; derived here",
        methods=("rdro_pooled",),
        tolerance=1e-12,
        check=pooled_mean_has_its_own_ratio,
    ),
    Theorem(
        name="rdro_of_pairs_needs_no_reward",
        claim="Fed with winners and losers of pairs from the reference and alpha = 1/2, RDRO "
        "converges to 2 * reference * probability to beat a fresh sample of the reference, a law "
        "for any preferences, cyclic ones included.",
        control="It converges to the reference times the probability to beat a uniform opponent.",
        source="derived here from " + _RDRO,
        methods=("rdro", "rdro_pooled"),
        tolerance=1e-9,
        check=winners_of_a_cycle,
    ),
    Theorem(
        name="rdro_needs_one_label_rate",
        claim="With one alpha for all prompts, RDRO recovers the law of desirable completions on "
        "each prompt if alpha is the label rate of each.",
        control="It is enough that alpha is the rate over all prompts.",
        source="derived here from " + _RDRO,
        methods=("rdro",),
        tolerance=1e-9,
        check=one_alpha_for_all_prompts,
    ),
)
