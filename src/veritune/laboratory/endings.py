"""Where training on a population loss ends: at rest at a policy, or on its way without end.

A search for a minimizer does not tell the two apart: where the loss falls for ever, its gradient
fades and passes for zero. What does tell is Newton's step, the distance to where the gradient would
be zero: it shrinks beside a rest point and keeps its length on a way without end.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from veritune.laboratory.population import PopulationLoss
from veritune.seeds import stream

Kind = Literal["rests", "drops", "collapses", "unclear"]
"""It rests at a policy; it drops some completions for ever; all but one; none of this was shown."""

AT_REST = 1e-3
"""Distance, in nats of the logits, below which an ending is a rest point."""

_SMALLEST_CURVATURE = 1e-13
_NEWTON_STEPS = 20
_DIFFERENCE = 1e-4
_FIRST_STEP = 1e-2
_LONGEST_MOVE = 2.0
_WIDEST = 600.0
_STILL_FALLING = -1.0
_NEARLY_ZERO = -14.0
_RAY = (0.0, 1.0, 4.0, 16.0, 64.0)
_ROUNDING = 1e-15
_SPHERE = 1e-4
_NUM_DIRECTIONS = 2_000
_NUDGES = (1e-1, 1e-3, 1e-5)
_DESCENT_STEPS = 1_000


@dataclass(frozen=True)
class TrainingPath:
    """Policies along the gradient flow of the logits."""

    times: tuple[float, ...]
    """Learning rate times the number of gradient steps."""

    policies: Float[Tensor, "T Y"]
    """Log-probabilities, float64."""


@dataclass(frozen=True)
class Ending:
    """Where training ends, and the evidence."""

    policy: Float[Tensor, " Y"]
    """Log-probabilities of the last policy that was looked at."""

    distance: float
    """Distance from it, in nats of the logits, at which the gradient would be zero.

    Length of Newton's step where the loss is smooth; infinite where no rest point attracts. For a
    loss with kinks, radius of a sphere around it on which the loss is nowhere lower, in many
    directions; 0 if the gradient is exactly zero.
    """

    kept: Bool[Tensor, " Y"]
    """Completions whose probability was not falling at the end."""

    falls_for_ever: bool
    """Whether training that lowers the others further meets no force back, up to 64 nats lower."""

    @property
    def kind(self) -> Kind:
        """What the evidence shows."""
        if self.distance < AT_REST:
            return "rests"
        if self.falls_for_ever and not bool(self.kept.all()):
            return "collapses" if int(self.kept.sum()) == 1 else "drops"
        return "unclear"

    @property
    def largest_probability(self) -> float:
        """Of the most probable completion."""
        return float(self.policy.exp().max())


def follow(
    loss: PopulationLoss,
    start: Float[Tensor, " Y"],
    *,
    until: float = 1e12,
    growth: float = 1.5,
) -> TrainingPath:
    """The gradient flow of the logits, by linearly implicit steps that grow with time.

    What training with small steps does, far beyond what it has time for: where the loss falls as
    1 / time, every decade moves the logits as far as the one before. A loss may hold quantities
    without gradient that move with the policy; the flow follows the gradient that training has.

    Args:
        loss: Twice differentiable, from (Y,) log-probabilities to a scalar.
        start: Log-probabilities where training begins.
        until: Time at which it ends, or earlier where one completion is e^600 times less probable
            than another.
        growth: Of time, for each step; less where a logit would move by more than 2 nats.
    """
    logits = start.detach().to(torch.float64)
    time = 0.0
    times, policies = [time], [logits.log_softmax(dim=0)]
    basis = _off_shifts(len(logits))
    while time < until and float(logits.max() - logits.min()) < _WIDEST:
        gradient, hessian = _derivatives(loss, logits)
        curvature, directions = torch.linalg.eigh(basis.T @ hessian @ basis)
        directions = basis @ directions
        step = max(_FIRST_STEP, (growth - 1) * time)
        while True:
            # Along negative curvature the implicit step has a pole; its size keeps it finite.
            move = -directions @ ((directions.T @ gradient) / (1 / step + curvature.abs()))
            if float(move.abs().max()) < _LONGEST_MOVE:
                break
            step /= 2
        logits = logits + move
        time += step
        times.append(time)
        policies.append(logits.log_softmax(dim=0))
    return TrainingPath(tuple(times), torch.stack(policies))


def ending_of(loss: PopulationLoss, path: TrainingPath) -> Ending:
    """Where a path leads: the rest point beside its end, if there is one."""
    logits, distance = path.policies[-1], float("inf")
    for _ in range(_NEWTON_STEPS):
        step = _newton_step(loss, logits)
        length = float("inf") if step is None else float(step.norm())
        # Long steps, or steps that do not shrink, would leave for some other place.
        if step is None or length >= min(distance, 1.0):
            distance = min(distance, length)
            break
        logits, distance = logits + step, length
    if distance < AT_REST:
        return _at_rest(logits.log_softmax(dim=0), distance)
    long_before = next(i for i, time in enumerate(path.times) if time >= path.times[-1] / 1e3)
    return _on_its_way(
        loss, path.policies[-1], path.policies[-1] - path.policies[long_before], distance
    )


def ending(loss: PopulationLoss, start: Float[Tensor, " Y"]) -> Ending:
    """Where training on a loss without kinks ends.

    Args:
        loss: Twice differentiable, from (Y,) log-probabilities to a scalar.
        start: Log-probabilities where training begins; the reference is a natural choice.
    """
    return ending_of(loss, follow(loss, start))


def ending_with_kinks(loss: PopulationLoss, start: Float[Tensor, " Y"]) -> Ending:
    """Where descent on a loss with kinks ends.

    Quasi-Newton steps that are neither too short nor too long find the bottom of a kinked valley
    (Lewis and Overton 2013, "Nonsmooth optimization via quasi-Newton methods"). There the gradient
    jumps and is no certificate, but the values on a sphere around it are.

    Args:
        loss: Differentiable almost everywhere, from (Y,) log-probabilities to a scalar.
        start: Log-probabilities where descent begins.
    """
    logits = follow(loss, start, until=100.0, growth=1.05).policies[-1]
    if float(_gradient(loss, logits).norm()) == 0:
        return _at_rest(logits, 0.0)
    generator = stream(0, "laboratory", "steps off a kink")
    for size in _NUDGES:
        # On a kink the gradient is that of one side only and may not lead down.
        drawn = torch.randn(len(logits), generator=generator, dtype=torch.float64)
        found = _descended(loss, logits + size * drawn)
        if loss(found.log_softmax(dim=0)) < loss(logits.log_softmax(dim=0)):
            logits = found
    policy = logits.log_softmax(dim=0)
    # Descent ends where rounding hides what is left to fall.
    motion = 2 * _STILL_FALLING * (policy < _NEARLY_ZERO).to(policy.dtype)
    moving = _on_its_way(loss, policy, motion, float("inf"))
    if moving.kind == "unclear" and _is_enclosed(loss, policy):
        return _at_rest(policy, _SPHERE)
    return moving


def _at_rest(policy: Tensor, distance: float) -> Ending:
    everything = torch.ones_like(policy, dtype=torch.bool)
    return Ending(policy, distance, everything, falls_for_ever=False)


def _on_its_way(loss: PopulationLoss, policy: Tensor, motion: Tensor, distance: float) -> Ending:
    """Which completions still fall, and whether anything stops them farther along their way."""
    kept = motion > _STILL_FALLING
    ahead = motion.masked_fill(kept, 0) / motion.abs().max()
    slopes = [float(_gradient(loss, policy + size * ahead) @ ahead) for size in _RAY]
    falls = slopes[0] < 0 and all(slope < _ROUNDING for slope in slopes)
    return Ending(policy, distance, kept, falls)


def _newton_step(loss: PopulationLoss, logits: Tensor) -> Tensor | None:
    """To where the gradient would be zero; None where that is no attracting point.

    The Jacobian is that of the gradient which training follows, by differences: a quantity without
    gradient moves with the policy, and automatic derivatives do not see it.
    """
    basis = _off_shifts(len(logits))
    columns = [
        (_gradient(loss, logits + place) - _gradient(loss, logits - place)) / (2 * _DIFFERENCE)
        for place in _DIFFERENCE * basis.T
    ]
    jacobian = basis.T @ torch.stack(columns, dim=1)
    if float(torch.linalg.eigvals(jacobian).real.min()) < _SMALLEST_CURVATURE:
        return None
    step: Tensor = torch.linalg.solve(jacobian, basis.T @ _gradient(loss, logits))
    return -basis @ step


def _descended(loss: PopulationLoss, logits: Tensor) -> Tensor:
    value, gradient = _value_and_gradient(loss, logits)
    identity = torch.eye(len(logits), dtype=logits.dtype)
    inverse = identity
    for _ in range(_DESCENT_STEPS):
        found = _line_search(loss, logits, value, gradient, -inverse @ gradient)
        if found is None:
            break
        step, value, following = found
        change = following - gradient
        scale = 1 / (change @ step)
        turn = identity - scale * torch.outer(step, change)
        inverse = turn @ inverse @ turn.T + scale * torch.outer(step, step)
        logits, gradient = logits + step, following
    return logits


def _line_search(
    loss: PopulationLoss, logits: Tensor, value: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """A step to where the loss is lower and falls less, with value and gradient there; None if
    rounding hides such a place."""
    slope = gradient @ direction
    low, high, size = 0.0, float("inf"), 1.0
    for _ in range(60):
        found, following = _value_and_gradient(loss, logits + size * direction)
        if not found < value + 1e-4 * size * slope:
            high = size
        elif following @ direction < 0.9 * slope:
            low = size
        else:
            return size * direction, found, following
        size = 2 * size if high == float("inf") else (low + high) / 2
    return None


def _is_enclosed(loss: PopulationLoss, logits: Tensor) -> bool:
    generator = stream(0, "laboratory", "directions around a kink")
    basis = _off_shifts(len(logits))
    drawn = torch.randn(_NUM_DIRECTIONS, basis.shape[1], generator=generator, dtype=logits.dtype)
    around = logits + _SPHERE * (drawn / drawn.norm(dim=1, keepdim=True)) @ basis.T
    values = torch.func.vmap(loss)(around.log_softmax(dim=1))
    return bool((values >= loss(logits.log_softmax(dim=0))).all())


def _value_and_gradient(loss: PopulationLoss, logits: Tensor) -> tuple[Tensor, Tensor]:
    point = logits.detach().clone().requires_grad_()
    value = loss(point.log_softmax(dim=0))
    (gradient,) = torch.autograd.grad(value, point)
    return value.detach(), gradient


def _gradient(loss: PopulationLoss, logits: Tensor) -> Tensor:
    return _value_and_gradient(loss, logits)[1]


def _derivatives(loss: PopulationLoss, logits: Tensor) -> tuple[Tensor, Tensor]:
    point = logits.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point.log_softmax(dim=0)), point, create_graph=True)
    rows = [torch.autograd.grad(entry, point, retain_graph=True)[0] for entry in gradient.unbind()]
    return gradient.detach(), torch.stack(rows)


def _off_shifts(size: int) -> Float[Tensor, "Y F"]:
    """A basis of the logits that sum to zero: adding a constant to all changes no probability."""
    centered = torch.eye(size, dtype=torch.float64) - 1 / size
    basis: Tensor = torch.linalg.svd(centered).U[:, : size - 1]
    return basis
