"""Density ratios of labelled completions: what is bounded for RDRO and has no bound for DDRO."""

import functools
import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.labels import class_laws, one_class, pushes
from veritune.laboratory.population import PopulationLoss, population_loss
from veritune.laboratory.problems import (
    bradley_terry_problem,
    disjoint_problem,
    mixture,
    mixture_problem,
)
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.unpaired.ddro import ddro_loss
from veritune.objectives.unpaired.ddro_stabilized import ddro_stabilized_loss
from veritune.objectives.unpaired.ddro_unweighted import ddro_unweighted_loss
from veritune.objectives.unpaired.rdro import rdro_loss
from veritune.objectives.unpaired.rdro_kliep import rdro_kliep_loss
from veritune.objectives.unpaired.rdro_lsif import rdro_lsif_loss
from veritune.seeds import stream

_NUM_COMPLETIONS = 8
_FRACTIONS = (0.2, 0.39, 0.5, 0.8)
_SEEDS = (0, 1, 2)
_NUM_DRAWS = 1000

_Generator = Callable[[Tensor], Tensor]


def _logistic(ratio: Tensor) -> Tensor:
    return ratio * ratio.log() - (1 + ratio) * torch.log1p(ratio)


def _half_square(ratio: Tensor) -> Tensor:
    return ratio**2 / 2


def _entropy(ratio: Tensor) -> Tensor:
    return ratio * ratio.log()


def _bregman(phi: _Generator, first: Tensor, second: Tensor) -> Tensor:
    """`phi(first) - phi(second) - phi'(second) (first - second)`."""
    point = second.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(phi(point).sum(), point)
    return phi(first) - phi(second) - slope * (first - second)


def excess_is_a_bregman_divergence() -> Evidence:
    """Excess losses of RDRO and its other members against divergences under the mixture."""
    members = ((rdro_loss, _logistic), (rdro_lsif_loss, _half_square), (rdro_kliep_loss, _entropy))
    residuals, controls = [], []
    for alpha in _FRACTIONS:
        generator = stream(0, "laboratory", "bregman", str(alpha))
        for seed in _SEEDS:
            laws = class_laws(mixture_problem(_NUM_COMPLETIONS, seed, desirable_fraction=alpha))
            mixed = mixture(laws.desirable, laws.undesirable, alpha)
            reference = bradley_terry_problem(_NUM_COMPLETIONS, seed).reference
            problem = FiniteProblem(
                reference=reference,
                desirable=laws.desirable,
                undesirable=laws.undesirable,
                desirable_fraction=alpha,
            )
            truth = (laws.desirable - mixed).exp()
            # Up to and beyond the ceiling, and not normalized.
            uniform = torch.rand(_NUM_COMPLETIONS, generator=generator, dtype=torch.float64)
            ratio = (0.01 + 1.5 * uniform) / alpha
            for loss, phi in members:
                expected = population_loss(loss, problem, alpha=alpha)
                excess = expected(reference + ratio.log()) - expected(reference + truth.log())
                divergence = (mixed.exp() * _bregman(phi, truth, ratio)).sum()
                reverse = (mixed.exp() * _bregman(phi, ratio, truth)).sum()
                residuals.append(float((excess - divergence).abs()))
                # The divergence of a square is the same in either order.
                if phi is not _half_square:
                    controls.append(float((excess - reverse).abs()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"alpha 0.2, 0.39, 0.5, 0.8; Y = {_NUM_COMPLETIONS}; any reference, ratios that need not "
        f"sum to one: difference at most {max(residuals):.0e} nats; in the other order at least "
        f"{min(controls):.3f}",
    )


def _problems(alpha: float) -> list[FiniteProblem]:
    """Laws that overlap, and laws that hardly do: there ratios are near the ceiling."""
    return [
        problem
        for seed in _SEEDS
        for problem in (
            mixture_problem(_NUM_COMPLETIONS, seed, desirable_fraction=alpha),
            disjoint_problem(_NUM_COMPLETIONS, seed, desirable_fraction=alpha, overlap=0.01),
        )
    ]


def curvature_bound() -> Evidence:
    """The largest share that the error of a ratio takes of its bound by the excess loss, less 1."""
    worst = dict.fromkeys(_FRACTIONS, 0.0)
    for alpha in _FRACTIONS:
        for number, problem in enumerate(_problems(alpha)):
            generator = stream(number, "laboratory", "bounded ratios", str(alpha))
            desirable = class_laws(problem).desirable
            truth = (desirable - problem.reference).exp()
            ratio = _bounded_ratios(truth, 1 / alpha, generator)
            loss = population_loss(rdro_loss, problem, alpha=alpha)
            excess = torch.func.vmap(loss)(problem.reference + ratio.log()) - loss(desirable)
            error = (problem.reference.exp() * (ratio - truth) ** 2).sum(dim=1)
            share = error / (2 * (1 + alpha) / alpha**2 * excess).where(excess > 0, 0)
            worst[alpha] = largest_residual([worst[alpha], float(share.max())])
    seen = ", ".join(f"{share:.3f} at {alpha}" for alpha, share in worst.items())
    return Evidence(
        largest_residual(worst.values()) - 1,
        2 * smallest_control(worst.values()) - 1,
        f"{_NUM_DRAWS * len(_problems(0.5)) * len(_FRACTIONS)} draws of ratios up to 1 / alpha, "
        f"laws that overlap and that share 0.01; largest share of the bound by alpha: {seen}",
    )


def _bounded_ratios(
    truth: Float[Tensor, " Y"], ceiling: float, generator: torch.Generator
) -> Float[Tensor, "S Y"]:
    """Random ratios below a ceiling, near the truth and far; half err in one completion only."""
    shape = (_NUM_DRAWS, len(truth))
    anywhere = ceiling * torch.rand(shape, generator=generator, dtype=torch.float64)
    # Not nearer: rounding of the loss must not count.
    nearness = 0.95 * torch.rand(_NUM_DRAWS, 1, generator=generator, dtype=torch.float64)
    ratio = nearness * truth + (1 - nearness) * anywhere
    errs = torch.randint(len(truth), (_NUM_DRAWS, 1), generator=generator)
    is_alone = torch.arange(_NUM_DRAWS)[:, None] % 2 == 0
    is_right = is_alone & (torch.arange(len(truth)) != errs)
    return torch.where(is_right, truth, ratio)


def total_variation_bound() -> Evidence:
    """The largest share that total variation to p+ takes of its bounds, less 1."""
    by_error, by_excess = [], []
    count = 0
    for alpha in _FRACTIONS:
        for number, problem in enumerate(_problems(alpha)):
            desirable = class_laws(problem).desirable
            laws = _bounded_laws(problem, number)
            distance = (laws.exp() - desirable.exp()).abs().sum(dim=1) / 2
            difference = (laws - problem.reference).exp() - (desirable - problem.reference).exp()
            error = (problem.reference.exp() * difference**2).sum(dim=1)
            by_error.append(float((distance / (error.sqrt() / 2)).max()))
            loss = population_loss(rdro_loss, problem, alpha=alpha)
            excess = torch.func.vmap(loss)(laws) - loss(desirable)
            bound = ((1 + alpha) / (2 * alpha**2) * excess).sqrt().where(excess > 0, 0)
            by_excess.append(float((distance / bound).max()))
            count += len(laws)
    return Evidence(
        largest_residual([*by_error, *by_excess]) - 1,
        2 * smallest_control(by_error) - 1,
        f"{count} laws with ratios up to 1 / alpha, alpha 0.2, 0.39, 0.5, 0.8: at most "
        f"{max(by_error):.3f} of the bound by the error of the ratio, {max(by_excess):.3f} of that "
        "by the excess loss",
    )


def _bounded_laws(problem: FiniteProblem, number: int) -> Float[Tensor, "S Y"]:
    """Laws near p+ and far, as log-probabilities, whose ratio is at most 1 / alpha."""
    laws = class_laws(problem)
    generator = stream(number, "laboratory", "bounded laws", str(laws.fraction))
    shape = (_NUM_DRAWS, problem.num_completions)
    tilt = torch.randn(shape, generator=generator, dtype=torch.float64)
    size = 10 ** (-2 * torch.rand(_NUM_DRAWS, 1, generator=generator, dtype=torch.float64))
    drawn = torch.logaddexp(
        laws.desirable + torch.log1p(-size), tilt.log_softmax(dim=1) + torch.log(size)
    )
    is_bounded = (drawn - problem.reference).amax(dim=1) <= -math.log(laws.fraction)
    return drawn[is_bounded]


def constant_survives_separation() -> Evidence:
    """The constants that the error bounds of RDRO and DDRO need as the laws come apart."""
    share = 0.5
    overlaps = (0.1, 0.03, 0.01, 0.003, 0.001)
    bound = 2 * (1 + share) / share**2
    relative, direct = [], []
    for overlap in overlaps:
        problem = disjoint_problem(
            _NUM_COMPLETIONS, seed=0, desirable_fraction=share, overlap=overlap
        )
        laws = class_laws(problem)
        relative.append(
            _needed_constant(
                population_loss(rdro_loss, problem, alpha=share),
                problem.reference.exp(),
                (laws.desirable - problem.reference).exp(),
                functools.partial(_policy_of_relative_ratio, problem.reference),
            )
        )
        direct.append(
            _needed_constant(
                population_loss(ddro_unweighted_loss, problem, t=share),
                laws.undesirable.exp(),
                (laws.desirable - laws.undesirable).exp(),
                functools.partial(_policy_of_direct_ratio, problem.reference, share),
            )
        )
    plot = Plot(
        title="What the bound on the error needs as the laws come apart",
        x="probability that each law gives to the completions of the other",
        y="squared error of the ratio / excess loss",
        curves=(
            Curve("rdro", tuple(zip(overlaps, relative, strict=True)), "marked"),
            Curve("ddro_unweighted", tuple(zip(overlaps, direct, strict=True)), "marked"),
            Curve("2 (1 + alpha) / alpha^2", tuple((o, bound) for o in overlaps), "guide"),
        ),
        log_x=True,
        log_y=True,
        note="RDRO stays under its constant; what DDRO needs grows with the square of p+ / p-.",
    )
    return Evidence(
        largest_residual(relative) / bound - 1,
        smallest_control(direct) / bound - 1,
        f"alpha = t = 1/2; one completion's ratio lowered by a percent: RDRO needs at most "
        f"{max(relative):.1f} of its {bound:.0f}; DDRO needs {direct[0]:.0e} where the laws share "
        f"{overlaps[0]} and {direct[-1]:.0e} where they share {overlaps[-1]}",
        (plot,),
    )


def _policy_of_relative_ratio(reference: Tensor, ratio: Tensor) -> Tensor:
    return reference + ratio.log()


def _policy_of_direct_ratio(reference: Tensor, t: float, ratio: Tensor) -> Tensor:
    """From R = (1 - t) rho / (1 - t rho), solved for rho = policy / reference."""
    return reference + (ratio / (1 - t + t * ratio)).log()


def _needed_constant(
    loss: PopulationLoss,
    weight: Float[Tensor, " Y"],
    truth: Float[Tensor, " Y"],
    policy_of: Callable[[Tensor], Tensor],
) -> float:
    """The largest mean squared error over excess loss, of ratios lowered at one completion.

    Args:
        loss: Minimal at the policy of the truth.
        weight: The law of the mean.
        truth: The ratio that is estimated.
        policy_of: Log-probabilities of the policy that stands for a ratio.
    """
    best = loss(policy_of(truth))
    needed = []
    for completion in range(len(truth) // 2):
        ratio = truth.clone()
        ratio[completion] *= 0.99
        error = (weight * (ratio - truth) ** 2).sum()
        needed.append(float(error / (loss(policy_of(ratio)) - best)))
    return largest_residual(needed)


def gradient_limits_itself() -> Evidence:
    """Where RDRO's push on a desirable completion is zero, and the ranges of both pushes."""
    log_ratio = torch.linspace(-60, 60, 2401, dtype=torch.float64)
    residuals, controls = [], []
    for alpha in _FRACTIONS:
        places = torch.tensor([-math.log(alpha), 0.0], dtype=torch.float64)
        at_ceiling, at_reference = pushes(
            rdro_loss, places, is_desirable=True, alpha=alpha
        ).tolist()
        up = pushes(rdro_loss, log_ratio, is_desirable=True, alpha=alpha)
        down = pushes(rdro_loss, log_ratio, is_desirable=False, alpha=alpha)
        # The ends of the ranges are approached and not passed.
        ends = (up.min() + 1, up.max() - alpha, down.min(), down.max() - (1 - alpha))
        residuals += [abs(at_ceiling), *(abs(float(end)) for end in ends)]
        controls.append(abs(at_reference))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        "alpha 0.2, 0.39, 0.5, 0.8; log-ratios from -60 to 60 nats: (-1, alpha) and (0, 1 - alpha) "
        f"to {max(residuals):.0e}; at ratio 1 a desirable completion is pushed by at least "
        f"{min(controls):.1f}",
    )


def ddro_pushes_without_bound() -> Evidence:
    """DDRO's push on an undesirable completion near the end of its domain: 1, 3, 19, 199, 1999."""
    # t times the ratio: the domain ends at 1.
    shares = torch.tensor([0.5, 0.75, 0.95, 0.995, 0.9995], dtype=torch.float64)
    expected = torch.tensor([1, 3, 19, 199, 1999], dtype=torch.float64)
    beyond = torch.tensor([1.00005, 1.25, 100], dtype=torch.float64)
    residuals, controls, largest = [], [], []
    for t in _FRACTIONS:
        log_ratio = shares.log() - math.log(t)
        found = pushes(ddro_loss, log_ratio, is_desirable=False, t=t) / (1 - t)
        tame = pushes(ddro_stabilized_loss, log_ratio, is_desirable=False, t=t) / (1 - t)
        outside = one_class(beyond.log() - math.log(t), is_desirable=False)
        ends = ddro_loss(outside, t=t) == math.inf
        relative = pushes(rdro_loss, log_ratio, is_desirable=False, alpha=t) / (1 - t)
        holds = bool(ends.all()) and float(relative.max()) <= 1
        residuals.append(float((found / expected - 1).abs().max()) if holds else math.inf)
        controls.append(float((tame / expected - 1).abs().max()))
        largest.append(float(relative.max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"t = {', '.join(map(str, _FRACTIONS))}; t times the ratio 0.5, 0.75, 0.95, 0.995, 0.9995: "
        "(1 - t) times 1, 3, 19, 199 and 1999; infinite loss beyond 1; RDRO with alpha = t pushes "
        f"by at most {max(largest):.2f} (1 - alpha)",
        (_push_plot(),),
    )


def _push_plot() -> Plot:
    grid = torch.linspace(0.02, 1.9998, 100, dtype=torch.float64)
    beyond = torch.linspace(2.0, 3.0, 51, dtype=torch.float64)
    half = {"alpha": 0.5}
    direct = {"t": 0.5}
    both = torch.cat([grid, beyond])

    def curve(
        name: str, loss: Callable[..., Tensor], ratios: Tensor, given: Mapping[str, float]
    ) -> Curve:
        values = pushes(loss, ratios.log(), is_desirable=False, **given)
        return Curve(name, tuple(zip(ratios.tolist(), values.tolist(), strict=True)))

    return Plot(
        title="Push on an undesirable completion",
        x="ratio policy / reference",
        y="derivative of the loss by the log-ratio",
        curves=(
            curve("rdro", rdro_loss, both, half),
            curve("ddro", ddro_loss, grid, direct),
            curve("ddro_stabilized", ddro_stabilized_loss, both, direct),
        ),
        log_y=True,
        note="DDRO's loss ends at ratio 1 / t = 2. RDRO pushes by less than 1 - alpha = 1/2.",
    )


def ddro_push_at_the_optimum() -> Evidence:
    """DDRO's push on undesirable completions at its optimum, against t p+ / p-."""
    residuals, controls, largest = [], [], []
    for fraction in (0.3, 0.5):
        for seed in _SEEDS:
            for overlap in (0.1, 0.01, 0.001):
                problem = disjoint_problem(
                    _NUM_COMPLETIONS, seed, desirable_fraction=fraction, overlap=overlap
                )
                laws = class_laws(problem)
                log_ratio = laws.desirable - problem.reference
                predicted = fraction * (laws.desirable - laws.undesirable).exp()
                direct = pushes(ddro_loss, log_ratio, is_desirable=False, t=fraction)
                relative = pushes(rdro_loss, log_ratio, is_desirable=False, alpha=fraction)
                residuals.append(float((direct / predicted - 1).abs().max()))
                controls.append(float((relative / predicted - 1).abs().max()))
                largest.append(float(direct.max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"t = 0.3 and 0.5; laws that share 0.1, 0.01 and 0.001: pushes up to {max(largest):.0f}, "
        f"as predicted to {max(residuals):.0e}",
    )


_RDRO = "Takahashi et al. 2026, arXiv:2604.04410"
_DDRO = "Higuchi and Suzuki 2025, arXiv:2505.07558"
_STATED = f"derived here in place of the bound that {_RDRO}, states"

THEOREMS = (
    Theorem(
        name="rdro_excess_is_a_bregman_divergence",
        claim="The excess loss of a ratio is its Bregman divergence from the true relative ratio, "
        "in the mean over the mixture, with phi(u) = u log u - (1 + u) log(1 + u) for RDRO, "
        "u^2 / 2 for least squares and u log u for the Kullback-Leibler criterion.",
        control="It is the divergence of the true ratio from the estimate.",
        source="derived here from " + _RDRO,
        methods=("rdro", "rdro_lsif", "rdro_kliep"),
        tolerance=1e-12,
        check=excess_is_a_bregman_divergence,
    ),
    Theorem(
        name="rdro_error_is_bounded_by_excess_loss",
        claim="The mean squared error of a ratio that stays below 1 / alpha is at most "
        "2 (1 + alpha) / alpha^2 times its excess loss.",
        control="Half that constant is enough.",
        source=_STATED,
        methods=("rdro",),
        tolerance=1e-6,
        check=curvature_bound,
    ),
    Theorem(
        name="rdro_distance_is_bounded_by_excess_loss",
        claim="If the reference is the mixture, total variation to the law of desirable "
        "completions is at most half the root mean squared error of the ratio, hence at most "
        "sqrt((1 + alpha) / (2 alpha^2) * excess loss) for ratios up to 1 / alpha.",
        control="It is at most a quarter of the root mean squared error.",
        source=_STATED,
        methods=("rdro",),
        tolerance=1e-6,
        check=total_variation_bound,
    ),
    Theorem(
        name="rdro_constant_survives_separation",
        claim="RDRO's error is bounded by its excess loss with one constant, however far apart the "
        "laws are.",
        control="DDRO's is, with that constant.",
        source=_STATED,
        methods=("rdro",),
        contrasts=("ddro_unweighted",),
        tolerance=1e-4,
        check=constant_survives_separation,
    ),
    Theorem(
        name="rdro_gradient_limits_itself",
        claim="RDRO pushes a desirable completion with a force between -1 and alpha that is zero "
        "at the ratio 1 / alpha, and an undesirable one with a force between 0 and 1 - alpha.",
        control="A desirable completion is at rest at the reference.",
        source="derived here from " + _RDRO,
        methods=("rdro",),
        tolerance=1e-12,
        check=gradient_limits_itself,
    ),
    Theorem(
        name="ddro_pushes_without_bound",
        claim="DDRO pushes an undesirable completion by (1 - t) t rho / (1 - t rho), without bound "
        "as rho approaches 1 / t, and its loss is infinite beyond; RDRO pushes by at most "
        "1 - alpha.",
        control="Stabilized DDRO pushes so, too.",
        source=f"derived here from {_DDRO}, and {_RDRO}",
        methods=("ddro", "rdro"),
        contrasts=("ddro_stabilized",),
        tolerance=1e-9,
        check=ddro_pushes_without_bound,
    ),
    Theorem(
        name="ddro_push_at_the_optimum",
        claim="At its optimum DDRO pushes an undesirable completion by t p+ / p-, which grows "
        "without bound as the laws come apart.",
        control="RDRO does.",
        source="derived here from " + _DDRO,
        methods=("ddro",),
        contrasts=("rdro",),
        tolerance=1e-9,
        check=ddro_push_at_the_optimum,
    ),
)
