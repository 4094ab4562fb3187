"""A minimizer in float64 that returns its certificate."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.distances import total_variation
from veritune.laboratory.population import PopulationLoss

_SUFFICIENT_DECREASE = 1e-4
_SMALLEST_CURVATURE = 1e-12
_CERTIFIED_GRADIENT = 1e-9
_CERTIFIED_DISTANCE = 1e-3
"""In nats of the logits: gradient over curvature."""


@dataclass(frozen=True)
class Minimum:
    """A policy and the evidence that it is a minimum."""

    policy: Float[Tensor, " Y"]
    """Log-probabilities, float64."""

    loss: float
    """The loss there."""

    gradient_norm: float
    """Length of the gradient with respect to the logits. A minimum at a finite policy has zero; a
    search that runs to the boundary of the simplex, too, ever more slowly."""

    smallest_curvature: float
    """Smallest eigenvalue of the Hessian over the logits, shifts of all logits left out. Where it
    is positive the point is a strict local minimum."""

    num_steps: int
    """Newton steps taken."""


@runtime_checkable
class Certificate(Protocol):
    """What a search says of the point where it ended."""

    @property
    def gradient_norm(self) -> float: ...

    @property
    def smallest_curvature(self) -> float: ...


def is_certified(found: Certificate, *, may_lie_on_boundary: bool = False) -> bool:
    """Whether a search ended at a strict local minimum and not merely ran out of steps.

    Where a loss falls for ever its gradient fades, but its curvature fades with it: the minimum, if
    there were one, would stay as far away as it was.

    Args:
        found: What the search says.
        may_lie_on_boundary: Whether the claim is about a law with zeros, which finite logits
            approach without end: then a fading gradient is all that there is to see.
    """
    if not (found.gradient_norm < _CERTIFIED_GRADIENT and found.smallest_curvature > 0):
        return False
    distance = found.gradient_norm / found.smallest_curvature
    return may_lie_on_boundary or distance < _CERTIFIED_DISTANCE


def certified_policy(minimum: Minimum, *, may_lie_on_boundary: bool = False) -> Float[Tensor, " Y"]:
    """The policy of a minimum; not a number where its certificate does not show that it is one."""
    if is_certified(minimum, may_lie_on_boundary=may_lie_on_boundary):
        return minimum.policy
    return torch.full_like(minimum.policy, torch.nan)


def distance_of_minimum(
    found: Minimum,
    law: Float[Tensor, " Y"],
    *,
    uncertified: float,
    may_lie_on_boundary: bool = False,
) -> float:
    """Total variation from a minimizer to a law, or `uncertified` where there is no certificate.

    Args:
        found: What the search says.
        law: Log-probabilities that the minimizer is held against.
        uncertified: Infinity for a residual and zero for a control, so that neither passes by
            accident.
        may_lie_on_boundary: As in `is_certified`.
    """
    certified = is_certified(found, may_lie_on_boundary=may_lie_on_boundary)
    return total_variation(found.policy, law) if certified else uncertified


def minimize(
    loss: PopulationLoss,
    start: Float[Tensor, " Y"],
    *,
    tolerance: float = 1e-11,
    max_steps: int = 500,
) -> Minimum:
    """The policy at the end of a Newton search over its logits, with its certificate.

    Directions of negative curvature are followed downhill, and a step that does not decrease the
    loss is halved; a loss that ends (`inf`) is a wall.

    Args:
        loss: Twice differentiable, from (Y,) log-probabilities to a scalar.
        start: Log-probabilities where the loss is finite; the reference is a natural choice.
        tolerance: Gradient norm at which the search ends.
        max_steps: After which it ends in any case. Read the certificate.
    """
    logits = start.detach().to(torch.float64)

    def of_logits(given: Tensor) -> Tensor:
        return loss(torch.log_softmax(given, dim=-1))

    num_steps = 0
    while True:
        value, gradient = _value_and_gradient(of_logits, logits)
        hessian = torch.autograd.functional.hessian(of_logits, logits)  # type: ignore[no-untyped-call]
        assert isinstance(hessian, Tensor)
        curvature, directions = _off_shifts(hessian)
        if gradient.norm() < tolerance or num_steps == max_steps:
            break
        force = (directions.T @ gradient) / curvature.abs().clamp(min=_SMALLEST_CURVATURE)
        step = -directions @ force
        step_size = _step_size(of_logits, logits, value, step, slope=float(gradient @ step))
        if step_size == 0:
            break
        logits = logits + step_size * step
        num_steps += 1
    return Minimum(
        policy=torch.log_softmax(logits, dim=-1),
        loss=float(value),
        gradient_norm=float(gradient.norm()),
        smallest_curvature=float(curvature.min()),
        num_steps=num_steps,
    )


def _value_and_gradient(of_logits: PopulationLoss, logits: Tensor) -> tuple[Tensor, Tensor]:
    point = logits.clone().requires_grad_()
    value = of_logits(point)
    (gradient,) = torch.autograd.grad(value, point)
    return value.detach(), gradient


def _off_shifts(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the Hessian among the logits that sum to zero.

    Adding a constant to all logits changes no probability, so that direction is left out.
    """
    size = len(hessian)
    centered = torch.eye(size, dtype=hessian.dtype) - 1 / size
    basis = torch.linalg.svd(centered).U[:, : size - 1]
    curvature, directions = torch.linalg.eigh(basis.T @ hessian @ basis)
    return curvature, basis @ directions


def _step_size(
    of_logits: PopulationLoss, logits: Tensor, value: Tensor, step: Tensor, *, slope: float
) -> float:
    """The first of 1, 1/2, 1/4, … that decreases the loss enough; 0 if none does."""
    # No logit moves by more than 10 at once: far out the loss is flat and Newton overshoots.
    size = min(1.0, 10.0 / float(step.abs().max().clamp(min=1e-300)))
    rounding = 1e-15 * (1 + abs(float(value)))
    while size > 1e-12:
        change = float(of_logits(logits + size * step) - value)
        if change <= _SUFFICIENT_DECREASE * size * slope + rounding:
            return size
        size /= 2
    return 0.0
