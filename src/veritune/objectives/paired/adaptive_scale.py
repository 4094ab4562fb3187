"""The scale by which Ada-DPO divides the margin of each pair: a convex problem in one number."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import logsigmoid

NUM_STEPS = 60
"""Steps of the safeguarded search. At ordinary settings twenty give nine digits, and seven digits
took at most 53 over margins up to 1e5 and ranges up to 1e12; halving alone ends in 60 where the
largest scale is 1e10 times the smallest."""

NEWTON_STEPS = 5
"""Steps of the released code for language models."""

_SMALLEST_CURVATURE = 1e-6
_CONVERGED = 1e-10


@dataclass(frozen=True)
class ScalePrices:
    """What a scale costs: `linear * tau + quadratic * tau^2`."""

    linear: float
    """Price of a unit of scale; where it is not negative the smallest scale is the best."""

    quadratic: float
    """Price of its square, at least 0."""


def linear_prices(rho_0: float) -> ScalePrices:
    """Prices of the linear penalty `(rho_0 - log 2) * tau`."""
    return ScalePrices(linear=rho_0 - math.log(2), quadratic=0.0)


def quadratic_prices(rho_0: float) -> ScalePrices:
    """Prices of the quadratic penalty `rho_0 * tau^2 - log 2 * tau`."""
    return ScalePrices(linear=-math.log(2), quadratic=rho_0)


def adaptive_scale(
    margin: Float[Tensor, " B"],
    prices: ScalePrices,
    *,
    lowest: float,
    highest: float,
    num_steps: int = NUM_STEPS,
) -> Float64[Tensor, " B"]:
    """The scale of each pair that minimizes its loss, to full convergence.

        tau = argmin over lowest <= tau <= highest of
              -tau * log sigmoid(margin / tau) + linear * tau + quadratic * tau^2

    The function is convex in tau, and its derivative is

        H(sigmoid(margin / tau)) + linear + 2 * quadratic * tau

    with H the entropy of a coin in nats, so that the scale does not depend on the margin's sign.
    The search is Newton's on log(tau) between two bounds that close in; a step that leaves them, or
    is not shorter than half the step before it, is replaced by the middle.

    Args:
        margin: Reward margins of B pairs; no gradient flows through them.
        prices: What a scale costs.
        lowest: Smallest scale, above 0.
        highest: Largest scale, at least the smallest.
        num_steps: Steps of the search, always all of them.

    Returns:
        Scales in float64, without gradient.
    """
    size = margin.detach().abs().to(torch.float64)

    def derivative(tau: Tensor) -> Tensor:
        return _derivative(size, tau, prices)

    low, high = torch.full_like(size, lowest), torch.full_like(size, highest)
    stays_low, stays_high = derivative(low) >= 0, derivative(high) <= 0
    low, high = low.log(), high.log()
    place, last_step = torch.zeros_like(size).clamp(low, high), high - low
    for _ in range(num_steps):
        tau = place.exp()
        slope = derivative(tau)
        high, low = torch.where(slope > 0, place, high), torch.where(slope > 0, low, place)
        # Where a pair is decided, its curvature is zero, and no Newton step is taken from there.
        curvature = tau * _second_derivative(size, tau, prices)
        step = -slope / curvature.clamp(min=torch.finfo(torch.float64).tiny)
        is_good = (place + step >= low) & (place + step <= high) & (step.abs() < last_step / 2)
        # At the end rounding moves the step over a bound; the middle would throw it far back.
        is_good |= step.abs() < _CONVERGED
        following = torch.where(is_good, place + step, (low + high) / 2)
        last_step, place = (following - place).abs(), following
    tau = place.exp().clamp(lowest, highest)
    return torch.where(stays_low, lowest, torch.where(stays_high, highest, tau))


def projected_newton_scale(
    margin: Float[Tensor, " B"],
    prices: ScalePrices,
    *,
    lowest: float,
    highest: float,
    num_steps: int = NEWTON_STEPS,
) -> Float64[Tensor, " B"]:
    """The scale after a few plain Newton steps from tau = 1, each projected to its interval.

    The released code takes this value. It is near the minimizer for most pairs and need not be for
    all; `adaptive_scale`, with the same arguments, is what the objectives use.

        tau <- clamp(tau - derivative(tau) / max(second_derivative(tau), 1e-6), lowest, highest)

    Source:
        Hong et al. 2024, arXiv:2406.02764, the algorithm; floor of the released code.
    """
    size = margin.detach().abs().to(torch.float64)
    tau = torch.ones_like(size)
    for _ in range(num_steps):
        curvature = _second_derivative(size, tau, prices).clamp(min=_SMALLEST_CURVATURE)
        tau = (tau - _derivative(size, tau, prices) / curvature).clamp(lowest, highest)
    return tau


def scaled_loss(
    margin: Float[Tensor, " B"], tau: Float64[Tensor, " B"], prices: ScalePrices
) -> Float[Tensor, " B"]:
    """The function of tau that `adaptive_scale` minimizes, in the dtype of the margin.

    At the minimizer its derivative with respect to the margin is that at a fixed tau, which is why
    no gradient needs to flow through the search.
    """
    scale = tau.to(margin.dtype)
    return -scale * logsigmoid(margin / scale) + (prices.linear + prices.quadratic * scale) * scale


def _derivative(
    size: Float64[Tensor, " B"], tau: Float64[Tensor, " B"], prices: ScalePrices
) -> Float64[Tensor, " B"]:
    logit = size / tau
    entropy = -logsigmoid(logit) + logit * torch.sigmoid(-logit)
    return entropy + prices.linear + 2 * prices.quadratic * tau


def _second_derivative(
    size: Float64[Tensor, " B"], tau: Float64[Tensor, " B"], prices: ScalePrices
) -> Float64[Tensor, " B"]:
    logit = size / tau
    return logit**2 / tau * torch.sigmoid(logit) * torch.sigmoid(-logit) + 2 * prices.quadratic
