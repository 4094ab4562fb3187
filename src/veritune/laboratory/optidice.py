"""OptiDICE: the best occupancy near that of the data, from a convex problem over states alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.decision_processes import (
    DecisionProcess,
    action_values,
    flow_gap,
    optimal_policy,
    policy_of_occupancy,
    state_values,
)
from veritune.objectives.divergences import Divergence
from veritune.ranges import Positive

_SUFFICIENT_DECREASE = 1e-4
_RIDGE = 1e-13


@dataclass(frozen=True)
class OptimalOccupancy:
    """What OptiDICE finds, with the evidence that it is the optimum."""

    potential: Float[Tensor, " S"]
    """Minimizer of the dual, one number per state; at a small alpha near the state's value."""

    weight: Float[Tensor, "S A"]
    """Ratio of the optimal occupancy to that of the data, at least 0."""

    occupancy: Float[Tensor, "S A"]
    """The optimal occupancy; sums to one where the flow gap is zero."""

    policy: Float[Tensor, "S A"]
    """The policy that has this occupancy."""

    dual: float
    """Value of the dual at the potential."""

    primal: float
    """Regularized reward of the occupancy. Never above the dual, but for what the flow gap adds;
    equal to it only at the optimum."""

    gradient_norm: float
    """Length of the gradient of the dual, which is the flow gap of the occupancy."""

    num_steps: int
    """Newton steps taken."""


def optidice_dual(
    process: DecisionProcess,
    data: Float[Tensor, "S A"],
    potential: Float[Tensor, " S"],
    *,
    alpha: Positive,
    divergence: Divergence,
) -> Float[Tensor, ""]:
    """Upper bound, for any potential, of what `regularized_reward` can reach.

        e(x, a) = reward(x, a) + gamma * sum over x' of P(x'|x,a) nu(x') - nu(x)
        w       = max(0, inverse of f' at e / alpha)
        dual    = (1 - gamma) * sum of initial * nu + sum of data * (w * e - alpha * f(w))

    Source:
        Lee et al. 2021, arXiv:2106.10783, the dual with the weights in closed form.
    """
    advantage = _advantage(process, potential)
    weight = _weight(advantage / alpha, divergence)
    gained = weight * advantage - alpha * divergence.generator(weight)
    return (1 - process.gamma) * (process.initial @ potential) + (data * gained).sum()


def regularized_reward(
    process: DecisionProcess,
    data: Float[Tensor, "S A"],
    visits: Float[Tensor, "S A"],
    *,
    alpha: Positive,
    divergence: Divergence,
) -> float:
    """The primal: `sum of visits * reward - alpha * sum of data * f(visits / data)`.

    Args:
        process: The reward is its.
        data: Occupancy of the data, above 0 everywhere.
        visits: An occupancy.
        alpha: Weight of the divergence.
        divergence: With f.

    Source:
        Lee et al. 2021, arXiv:2106.10783, the regularized problem.
    """
    penalty = (data * divergence.generator(visits / data)).sum()
    return float((visits * process.reward).sum() - alpha * penalty)


def optimal_occupancy(
    process: DecisionProcess,
    data: Float[Tensor, "S A"],
    *,
    alpha: Positive,
    divergence: Divergence,
    tolerance: float = 1e-12,
    max_steps: int = 1000,
) -> OptimalOccupancy:
    """The occupancy with the largest reward less `alpha` times its divergence from the data's.

        maximize over d   sum of d * reward - alpha * sum of data * f(d / data)
        subject to        d >= 0 and a flow gap of zero in every state

    The dual is minimized by Newton's method with step halving: its gradient is the flow gap of
    `w * data`, and its Hessian is positive semidefinite.

    Args:
        process: All of it is known, so expectations are exact.
        data: Occupancy of the data, above 0 everywhere.
        alpha: A larger one keeps nearer to the data.
        divergence: With f and the inverse of f'.
        tolerance: Gradient norm at which the search ends.
        max_steps: After which it ends in any case. Read the certificate.

    Returns:
        The optimum, its policy and the certificate.

    Differs from the paper:
        There the potential and the weights are networks trained on samples, and the policy is
        fitted to the weighted data. Here nothing is sampled, and the policy is read off.

    Source:
        Lee et al. 2021, arXiv:2106.10783.
    """
    assert bool((data > 0).all()), "the data have every action in every state"
    # At the best values no advantage is above zero and one per state is zero: nothing overflows
    # however small alpha is, and the Hessian is not singular.
    best = state_values(process, optimal_policy(process))
    point = _Point(process, data, best, alpha, divergence)
    num_steps = 0
    while point.gap_norm >= tolerance and num_steps < max_steps:
        nearer = _newton_step(point)
        if nearer is None:
            break
        point = nearer
        num_steps += 1
    visits = point.weight * data
    return OptimalOccupancy(
        potential=point.potential,
        weight=point.weight,
        occupancy=visits,
        policy=policy_of_occupancy(visits),
        dual=point.dual,
        primal=regularized_reward(process, data, visits, alpha=alpha, divergence=divergence),
        gradient_norm=point.gap_norm,
        num_steps=num_steps,
    )


class _Point:
    """A potential with the value and the slope of the dual there."""

    def __init__(
        self,
        process: DecisionProcess,
        data: Tensor,
        potential: Tensor,
        alpha: float,
        divergence: Divergence,
    ) -> None:
        self.process, self.data, self.potential = process, data, potential
        self.alpha, self.divergence = alpha, divergence
        self.weight = _weight(_advantage(process, potential) / alpha, divergence)
        self.dual = float(
            optidice_dual(process, data, potential, alpha=alpha, divergence=divergence)
        )
        self.gap = flow_gap(process, self.weight * data)
        self.gap_norm = float(self.gap.norm())

    def at(self, potential: Tensor) -> "_Point":
        return _Point(self.process, self.data, potential, self.alpha, self.divergence)

    def hessian(self) -> Tensor:
        """`B^T diag(data * dw/de) B`, where e = reward + B nu."""
        slope = (_advantage(self.process, self.potential) / self.alpha).requires_grad_()
        (rise,) = torch.autograd.grad(_weight(slope, self.divergence).sum(), slope)
        size = self.process.num_states
        from_potential = (
            self.process.gamma * self.process.transition
            - torch.eye(size, dtype=torch.float64)[:, None, :]
        ).reshape(-1, size)
        scale = (self.data * rise / self.alpha).reshape(-1, 1)
        hessian = from_potential.T @ (scale * from_potential)
        # A state that no weighted action leaves or enters leaves its potential undetermined.
        ridge = _RIDGE * hessian.diagonal().max()
        return hessian + ridge * torch.eye(size, dtype=torch.float64)


def _newton_step(point: _Point) -> _Point | None:
    """The first of 1, 1/2, 1/4, … of a Newton step that is nearer; None if none is."""
    step = -torch.linalg.solve(point.hessian(), point.gap)
    slope = float(point.gap @ step)
    size = 1.0
    while size > 1e-12:
        tried = point.at(point.potential + size * step)
        if tried.dual - point.dual <= _SUFFICIENT_DECREASE * size * slope:
            return tried
        # Close to the minimum the decrease drowns in rounding while the gradient still shrinks.
        if tried.gap_norm <= point.gap_norm / 2:
            return tried
        size /= 2
    return None


def _advantage(process: DecisionProcess, potential: Tensor) -> Tensor:
    return action_values(process, potential) - potential[:, None]


def _weight(slope: Tensor, divergence: Divergence) -> Tensor:
    return divergence.inverse_derivative(slope).clamp(min=0)
