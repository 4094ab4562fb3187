"""A minimizer over the few parameters of a policy, with its certificate.

`minimize.py` searches among all laws; this searches among those that a policy can represent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from veritune.laboratory.population import PopulationLoss

_NEWTON_STEPS = 20


@dataclass(frozen=True)
class Fit:
    """A policy within a family, and the evidence that its loss is a minimum there."""

    policy: Float[Tensor, " Y"]
    """Log-probabilities, float64."""

    parameters: Float[Tensor, " P"]
    """All parameters of the policy, laid end to end."""

    loss: float
    """The loss there."""

    gradient_norm: float
    """Length of the gradient with respect to the parameters."""

    smallest_curvature: float
    """Smallest eigenvalue of the Hessian over the parameters; where it is positive the point is a
    strict local minimum."""


def fit(
    policy: nn.Module, loss: PopulationLoss, *, tolerance: float = 1e-11, max_steps: int = 500
) -> Fit:
    """The local minimum below the policy's parameters, which are left as they are.

    L-BFGS leads into the basin and Newton steps to its floor.

    Args:
        policy: Takes nothing and returns (Y,) log-probabilities; no two of its parameters may be
            redundant, or the certificate has a curvature of zero.
        loss: Twice differentiable, from (Y,) log-probabilities to a scalar.
        tolerance: Gradient norm at which the search ends.
        max_steps: Of L-BFGS. Read the certificate.
    """
    start = parameters_to_vector(policy.parameters()).detach()

    def law(vector: Tensor) -> Tensor:
        result: Tensor = functional_call(policy, _named(policy, vector), ())
        return result

    def of_parameters(vector: Tensor) -> Tensor:
        return loss(law(vector))

    vector = _descended(of_parameters, start, tolerance, max_steps)
    for _ in range(_NEWTON_STEPS):
        gradient, hessian = _derivatives(of_parameters, vector)
        curvature = torch.linalg.eigvalsh(hessian)
        if gradient.norm() < tolerance or curvature.min() <= 0:
            break
        vector = vector - torch.linalg.solve(hessian, gradient)
    gradient, hessian = _derivatives(of_parameters, vector)
    return Fit(
        policy=law(vector).detach(),
        parameters=vector,
        loss=float(of_parameters(vector)),
        gradient_norm=float(gradient.norm()),
        smallest_curvature=float(torch.linalg.eigvalsh(hessian).min()),
    )


def _named(policy: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """The parameters by name, cut out of a vector."""
    parameters = dict(policy.named_parameters())
    parts = torch.split(vector, [parameter.numel() for parameter in parameters.values()])
    return {
        name: part.view(parameter.shape)
        for (name, parameter), part in zip(parameters.items(), parts, strict=True)
    }


def _descended(
    of_parameters: PopulationLoss, start: Tensor, tolerance: float, steps: int
) -> Tensor:
    vector = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [vector],
        max_iter=steps,
        tolerance_grad=tolerance,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = of_parameters(vector)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return vector.detach()


def _derivatives(of_parameters: PopulationLoss, vector: Tensor) -> tuple[Tensor, Tensor]:
    point = vector.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of_parameters(point), point)
    hessian = torch.autograd.functional.hessian(of_parameters, vector)  # type: ignore[no-untyped-call]
    assert isinstance(hessian, Tensor)
    return gradient, hessian
