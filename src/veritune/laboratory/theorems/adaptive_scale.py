"""Ada-DPO: the scale that it gives to each pair, how it finds it, and where it leads.

The scale of a pair is the solution of a small convex problem. Here that problem is solved again by
means that know nothing of the objective's search: grids over values, and halving an interval by the
sign of the derivative that automatic differentiation gives.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from veritune.laboratory.comparisons import comparison_losses, pair_forces, pairs_of
from veritune.laboratory.distances import total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.intervals import grid_minimum
from veritune.laboratory.minimize import is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.optimum import tilted_reference
from veritune.objectives.paired.ada_dpo import ada_dpo_loss
from veritune.objectives.paired.ada_dpo_quadratic import ada_dpo_quadratic_loss
from veritune.objectives.paired.adaptive_scale import (
    ScalePrices,
    adaptive_scale,
    linear_prices,
    projected_newton_scale,
    quadratic_prices,
    scaled_loss,
)
from veritune.objectives.paired.dpo import dpo_loss

_SEEDS = (0, 1, 2)
_WIN_PROBABILITIES = (0.55, 0.7, 0.9, 0.99)
_LOG_TWO = math.log(2)


class _Setting(NamedTuple):
    """An objective with its hyper-parameters, and the problem in the scale that they pose."""

    name: str
    loss: Callable[..., Tensor]
    hyperparameters: dict[str, float]
    prices: ScalePrices
    lowest: float
    highest: float

    def solved(self, margin: Tensor, search: Callable[..., Tensor], **options: int) -> Tensor:
        """The scales that a search of the objective's file finds."""
        return search(margin, self.prices, lowest=self.lowest, highest=self.highest, **options)


def _linear(rho_0: float, tau_0: float = 0.1, tau_max: float = 5.0) -> _Setting:
    return _Setting(
        f"rho_0 = {rho_0:g} on [{tau_0:g}, {tau_max:g}]",
        ada_dpo_loss,
        {"tau_0": tau_0, "tau_max": tau_max, "rho_0": rho_0},
        linear_prices(rho_0),
        tau_0,
        tau_max,
    )


def _quadratic(rho_0: float, tau_0: float = 0.1) -> _Setting:
    return _Setting(
        f"quadratic, rho_0 = {rho_0:g} from {tau_0:g}",
        ada_dpo_quadratic_loss,
        {"tau_0": tau_0, "rho_0": rho_0},
        quadratic_prices(rho_0),
        tau_0,
        # The scale has no upper end. That of a certain preference is half of this.
        max(2 * tau_0, _LOG_TWO / rho_0),
    )


_SETTINGS = (_linear(0.05), _linear(0.2), _linear(0.4), _quadratic(0.05), _quadratic(0.005))


def _entropy(win_probability: float) -> float:
    lose = 1 - win_probability
    return -win_probability * math.log(win_probability) - lose * math.log(lose)


def _linear_proposition(setting: _Setting, win_probability: float) -> float:
    price = setting.prices.linear
    return setting.lowest if _entropy(win_probability) + price > 0 else setting.highest


def _quadratic_proposition(setting: _Setting, win_probability: float) -> float:
    clarity = _LOG_TWO - _entropy(win_probability)
    return max(setting.lowest, clarity / (2 * setting.prices.quadratic))


def _best_scale(setting: _Setting, wins: Float64[Tensor, " P"]) -> Float64[Tensor, " P"]:
    """The scale at which the best margin costs least, by grids over both."""

    def cost(margin: Tensor, tau: Tensor) -> Tensor:
        tau, win = (given.expand_as(margin).flatten() for given in (tau, wins))
        won, lost = (scaled_loss(sign * margin.flatten(), tau, setting.prices) for sign in (1, -1))
        return (win * won + (1 - win) * lost).view_as(margin)

    def least_cost(tau: Tensor) -> Tensor:
        margin = grid_minimum(lambda margins: cost(margins, tau), -10 * tau, 10 * tau)
        return cost(margin, tau)

    ends = (torch.full_like(wins, end) for end in (setting.lowest, setting.highest))
    return grid_minimum(least_cost, *ends)


def _best_margin(setting: _Setting, wins: Float64[Tensor, " P"]) -> Float64[Tensor, " P"]:
    """The margin at which the objective's own expected loss is smallest, by a grid."""
    beta = 2.0

    def cost(log_ratio: Tensor) -> Tensor:
        win = wins.expand_as(log_ratio).flatten()
        given = {"beta": beta, **setting.hyperparameters}
        return comparison_losses(setting.loss, log_ratio.flatten(), win, **given).view_as(log_ratio)

    farthest = torch.full_like(wins, 100.0)
    return beta * grid_minimum(cost, -farthest, farthest)


def _margins_of_comparisons(
    settings: tuple[_Setting, ...], proposition: Callable[[_Setting, float], float]
) -> Evidence:
    """Relative errors of scale and margin of comparisons that are won with each probability."""
    wins = torch.tensor(_WIN_PROBABILITIES, dtype=torch.float64)
    residuals: list[float] = []
    controls: list[float] = []
    seen = []
    for setting in settings:
        claimed = torch.tensor([proposition(setting, win) for win in _WIN_PROBABILITIES]).to(wins)
        margin, scale = _best_margin(setting, wins), _best_scale(setting, wins)
        errors = (margin / (claimed * wins.logit()) - 1, scale / claimed - 1)
        residuals += [float(error.abs().max()) for error in errors]
        controls += (margin / wins.logit() - 1).abs().tolist()
        seen.append(f"{', '.join(f'{tau:.3g}' for tau in scale.tolist())} for {setting.name}")
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"win probabilities {', '.join(f'{win:g}' for win in _WIN_PROBABILITIES)}: scales "
        f"{'; '.join(seen)}; largest relative error {max(residuals):.1e}",
    )


def _scale_plot() -> Plot:
    wins = torch.linspace(0.5, 0.995, 100, dtype=torch.float64)
    return Plot(
        "Scale of a comparison",
        "probability that its winner wins",
        "scale tau",
        tuple(
            Curve(
                setting.name,
                tuple(zip(wins.tolist(), _best_scale(setting, wins).tolist(), strict=True)),
            )
            for setting in (_linear(0.2), _quadratic(0.05))
        ),
        note="With a linear price the scale jumps from the smallest to the largest where the "
        "entropy of the preference falls below log 2 - rho_0; with a quadratic price it grows.",
    )


def linear_margins() -> Evidence:
    """Scales and margins under the linear price."""
    settings = (_linear(0.2), _linear(0.1, tau_0=0.5, tau_max=2.0))
    evidence = _margins_of_comparisons(settings, _linear_proposition)
    return dataclasses.replace(evidence, plots=(_scale_plot(),))


def quadratic_margins() -> Evidence:
    """Scales and margins under the quadratic price."""
    return _margins_of_comparisons((_quadratic(0.05), _quadratic(0.02)), _quadratic_proposition)


def _margins() -> Float64[Tensor, " B"]:
    zero = torch.zeros(1, dtype=torch.float64)
    return torch.cat([zero, torch.logspace(-3, 3, 601, dtype=torch.float64)])


def _slope(setting: _Setting, margin: Tensor, tau: Tensor) -> Tensor:
    """Derivative of the loss by the scale, by automatic differentiation."""
    point = tau.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(scaled_loss(margin, point, setting.prices).sum(), point)
    return slope


def _halved_scale(setting: _Setting, margin: Tensor) -> Tensor:
    """The scale at which that derivative changes its sign, by halving the interval."""
    low, high = (torch.full_like(margin, end) for end in (setting.lowest, setting.highest))
    for _ in range(100):
        middle = (low + high) / 2
        rises = _slope(setting, margin, middle) > 0
        low, high = torch.where(rises, low, middle), torch.where(rises, middle, high)
    return (low + high) / 2


def the_search_finds_the_scale() -> Evidence:
    """Scales of both searches against halving, and what too few steps cost."""
    margin = _margins()
    residuals: list[float] = []
    controls: list[float] = []
    seen = []
    for setting in _SETTINGS:
        claimed = _halved_scale(setting, margin)
        five, fifty = (
            (setting.solved(margin, projected_newton_scale, num_steps=count) - claimed).abs().max()
            for count in (5, 50)
        )
        found = setting.solved(margin, adaptive_scale)
        residuals.append(float((found - claimed).abs().max()))
        controls.append(float(five))
        seen.append(f"{float(five):.2g} ({float(fifty):.2g}) for {setting.name}")
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"margins 0 and 0.001 to 1000: largest error {max(residuals):.1e}; after five (fifty) "
        f"Newton steps {', '.join(seen)}",
    )


def newton_derivatives() -> Evidence:
    """Each Newton step against one that is made of automatic derivatives where it began."""
    margin = _margins()
    residuals: list[float] = []
    controls: list[float] = []
    for setting in _SETTINGS:
        free = setting._replace(prices=ScalePrices(linear=0.0, quadratic=0.0))
        differences: dict[str, list[float]] = {"own": [], "free": []}
        for count in range(5):
            start, end = (
                setting.solved(margin, projected_newton_scale, num_steps=number)
                for number in (count, count + 1)
            )
            for name, derivatives_of in (("own", setting), ("free", free)):
                expected = _newton_step(derivatives_of, margin, start)
                differences[name].append(float((end - expected).abs().max()))
        residuals += differences["own"]
        controls.append(max(differences["free"]))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"five steps from 1 at margins 0 and 0.001 to 1000, {len(_SETTINGS)} settings: largest "
        f"difference {max(residuals):.1e}",
    )


def _newton_step(setting: _Setting, margin: Tensor, tau: Tensor) -> Tensor:
    point = tau.detach().clone().requires_grad_()
    loss = scaled_loss(margin, point, setting.prices).sum()
    (slope,) = torch.autograd.grad(loss, point, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), point)
    step = slope.detach() / curvature.clamp(min=1e-6)
    return (tau - step).clamp(setting.lowest, setting.highest)


def _loss_at_scale_of(
    search: Callable[..., Tensor], setting: _Setting, margin: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    return scaled_loss(margin, setting.solved(margin, search), setting.prices)


def _catalog_loss(setting: _Setting, margin: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    pairs = pairs_of(margin, torch.zeros_like(margin))
    return setting.loss(pairs, beta=1.0, **setting.hyperparameters)


def _gradient_error(function: Callable[[Tensor], Tensor], margin: Tensor) -> float:
    """Largest difference between the automatic gradient and finite differences of fourth order."""
    point = margin.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point).sum(), point)
    step = 1e-4
    values = [function(margin + times * step) for times in (-2, -1, 1, 2)]
    difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return float((gradient - difference).abs().max())


def no_gradient_through_the_search() -> Evidence:
    """Gradients at the scale that was found against finite differences that find it anew."""
    margin = torch.linspace(-12, 12, 961, dtype=torch.float64) + 0.007
    residuals: list[float] = []
    controls: list[float] = []
    for setting in _SETTINGS:
        residuals.append(_gradient_error(partial(_catalog_loss, setting), margin))
        hasty = partial(_loss_at_scale_of, projected_newton_scale, setting)
        controls.append(_gradient_error(hasty, margin))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"961 margins from -12 to 12, {len(_SETTINGS)} settings: largest difference "
        f"{max(residuals):.1e}; after five Newton steps {min(controls):.1e} to {max(controls):.1e}",
    )


def the_force_is_that_of_dpo_rescaled() -> Evidence:
    """Forces of Ada-DPO on a pair against those of DPO at the margin over the scale."""
    margin = torch.cat([-_margins(), _margins()])
    zero = torch.zeros_like(margin)
    residuals: list[float] = []
    controls: list[float] = []
    for setting in _SETTINGS:
        found = pair_forces(setting.loss, margin, zero, beta=1.0, **setting.hyperparameters)
        scaled = margin / _halved_scale(setting, margin)
        for given, values in ((scaled, residuals), (margin, controls)):
            expected = pair_forces(dpo_loss, given, zero, beta=1.0)
            values.append(float((found - expected).abs().max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"margins up to 1000 of either sign, {len(_SETTINGS)} settings: largest difference "
        f"{max(residuals):.1e}",
    )


def doubtful_pairs_tilt_the_reference() -> Evidence:
    """Minimizers where all preferences are doubtful, and where DPO's would be."""
    residuals: list[float] = []
    controls: list[float] = []
    radii: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(5, seed)
        assert problem.reward is not None, "a Bradley-Terry problem has a reward"
        clearest = float(torch.sigmoid(problem.reward.max() - problem.reward.min()))
        rho_0 = _LOG_TWO - 0.9 * _entropy(clearest)
        radii.append(rho_0)
        for tau_0 in (0.3, 2.0):
            expected = population_loss(
                ada_dpo_loss, problem, beta=0.5, tau_0=tau_0, tau_max=5.0, rho_0=rho_0
            )
            found = minimize(expected, problem.reference)
            is_minimum = is_certified(found)
            for scale, values in ((tau_0, residuals), (1.0, controls)):
                claimed = tilted_reference(problem.reference, scale * problem.reward / 0.5)
                distance = total_variation(found.policy, claimed)
                values.append(distance if is_minimum else math.nan)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = 5, tau_0 = 0.3 and 2, rho_0 = {min(radii):.2f} to {max(radii):.2f}: TV at most "
        f"{max(residuals):.1e}; from the optimum of DPO {min(controls):.2f} to "
        f"{max(controls):.2f}",
    )


_ADA = "Hong et al. 2024, arXiv:2406.02764"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="ada_dpo_margin_follows_entropy",
        claim="A comparison that is won with probability p ends at the margin tau logit(p), where "
        "tau is the largest scale if the entropy of p is below log 2 - rho_0, and the smallest if "
        "it is above.",
        control="It ends at the margin logit(p), where DPO ends.",
        source=f"{_ADA}, the proposition on the linear penalty",
        methods=("ada_dpo",),
        tolerance=1e-6,
        check=linear_margins,
    ),
    Theorem(
        name="ada_dpo_quadratic_margin_grows",
        claim="With a quadratic price a comparison that is won with probability p ends at the "
        "margin tau logit(p), where tau is the larger of tau_0 and (log 2 - entropy of p) / "
        "(2 rho_0).",
        control="It ends at the margin logit(p), where DPO ends.",
        source=f"{_ADA}, the proposition on the quadratic penalty",
        methods=("ada_dpo_quadratic",),
        tolerance=1e-6,
        check=quadratic_margins,
    ),
    Theorem(
        name="ada_dpo_finds_its_scale",
        claim="The scale that Ada-DPO gives to a pair minimizes its loss over the interval of "
        "scales, at every margin.",
        control="So does the scale after five Newton steps from 1.",
        source=f"{_ADA}; convergence measured here",
        methods=("ada_dpo", "ada_dpo_quadratic"),
        tolerance=1e-9,
        check=the_search_finds_the_scale,
    ),
    Theorem(
        name="ada_dpo_newton_derivatives",
        claim="The derivatives in Ada-DPO's Newton steps are those of the loss by the scale.",
        control="They are those of the loss that the released code reports, without the price of "
        "the scale.",
        source=f"{_ADA}, the algorithm",
        methods=("ada_dpo", "ada_dpo_quadratic"),
        tolerance=1e-8,
        check=newton_derivatives,
    ),
    Theorem(
        name="ada_dpo_gradient_needs_no_search",
        claim="The gradient of Ada-DPO at the scale that was found is that of the whole loss, the "
        "search included.",
        control="It is so after five Newton steps, too.",
        source=f"{_ADA}; the envelope theorem",
        methods=("ada_dpo", "ada_dpo_quadratic"),
        tolerance=1e-8,
        check=no_gradient_through_the_search,
    ),
    Theorem(
        name="ada_dpo_force_is_dpo_rescaled",
        claim="The force of Ada-DPO on a pair is that of DPO at the margin divided by the scale.",
        control="It is that of DPO at the same margin.",
        source=f"{_ADA}, the gradient",
        methods=("ada_dpo", "ada_dpo_quadratic", "dpo"),
        tolerance=1e-9,
        check=the_force_is_that_of_dpo_rescaled,
    ),
    Theorem(
        name="ada_dpo_tilts_by_doubtful_pairs",
        claim="Where preferences follow Bradley-Terry and the entropy of each is above "
        "log 2 - rho_0, Ada-DPO converges to the reference tilted by exp(tau_0 reward / beta).",
        control="It converges to the reference tilted by exp(reward / beta), as DPO does.",
        source="derived here from arXiv:2406.02764",
        methods=("ada_dpo",),
        tolerance=1e-8,
        check=doubtful_pairs_tilt_the_reference,
    ),
)
