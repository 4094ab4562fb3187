"""The minimizer for many samples of one problem at once, with a certificate for each."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from veritune.laboratory.population import population_loss
from veritune.objectives.optimum import FiniteProblem

_SUFFICIENT_DECREASE = 1e-4
_SMALLEST_CURVATURE = 1e-12
_GRADIENT_NORM = 1e-9
_FIRST_ORDER_GAP = 1e-8

_Losses = Callable[[Float[Tensor, "S Y"]], Float[Tensor, " S"]]


@dataclasses.dataclass(frozen=True)
class Minima:
    """A policy for each of S samples and the evidence that it is a minimum.

    A sample without desirable examples of a completion can send that completion's probability to
    zero, where no finite logits are: the search ends beside the boundary. Gradient and Hessian over
    the logits then fade with the probability and say nothing of it, so the certificate holds two
    numbers that do not fade.
    """

    policies: Float[Tensor, "S Y"]
    """Log-probabilities, float64."""

    losses: Float[Tensor, " S"]
    """The loss there."""

    gradient_norms: Float[Tensor, " S"]
    """Length of the gradient with respect to the logits."""

    first_order_gaps: Float[Tensor, " S"]
    """The largest decrease that the gradient with respect to probabilities promises on the way to
    any other law. No other law is better by more where the loss is convex in the probabilities, as
    that of DDRO is; anywhere, none wants mass back that the search took from it."""

    smallest_curvatures: Float[Tensor, " S"]
    """Smallest eigenvalue of the Hessian over the logits in units of the policy's Fisher metric,
    that is of `D^(-1/2) H D^(-1/2)` with D the probabilities, shifts of all logits left out. It has
    the sign of the Hessian's own. Zero says that the sample leaves a choice."""

    num_steps: int
    """Newton steps of the sample that took longest."""

    @property
    def are_certified(self) -> Bool[Tensor, " S"]:
        """Whether each is a strict local minimum, to 1e-9 in the gradient and 1e-8 in the gap."""
        return (
            (self.gradient_norms < _GRADIENT_NORM)
            & (self.first_order_gaps < _FIRST_ORDER_GAP)
            & (self.smallest_curvatures > 0)
        )


def minimize_many(
    loss: Callable[..., Tensor],
    samples: Sequence[FiniteProblem],
    start: Float[Tensor, " Y"],
    *,
    tolerance: float = 1e-11,
    max_steps: int = 200,
    group_size: int = 2,
    **hyperparameters: float,
) -> Minima:
    """The policies that minimize a loss on each of many samples, by Newton's method as `minimize`.

    Args:
        loss: A loss function of the catalog.
        samples: Of one problem: they differ in the values of their laws only.
        start: Log-probabilities where the loss is finite on every sample; the minimizer of the
            population saves steps.
        tolerance: Gradient norm at which the search ends.
        max_steps: After which it ends in any case. Read the certificates.
        group_size: Completions in a group, for a loss on groups.
        hyperparameters: Of the loss.
    """
    losses = _losses(loss, samples, group_size, hyperparameters)
    logits = start.detach().to(torch.float64).repeat(len(samples), 1)
    is_active = torch.ones(len(samples), dtype=torch.bool)
    num_steps = 0
    while True:
        value, gradient, hessian = _derivatives(losses, logits)
        is_active = is_active & (gradient.norm(dim=1) >= tolerance)
        if not is_active.any() or num_steps == max_steps:
            break
        step = _newton_step(gradient, hessian)
        slope = (gradient * step).sum(dim=1)
        size = _step_sizes(losses, logits, value, step, slope, is_active)
        is_active = is_active & (size > 0)
        logits = logits + size[:, None] * step
        num_steps += 1
    policies = logits.log_softmax(dim=1)
    return Minima(
        policies=policies,
        losses=value,
        gradient_norms=gradient.norm(dim=1),
        first_order_gaps=_first_order_gaps(losses, policies),
        smallest_curvatures=_smallest_fisher_curvatures(hessian, policies),
        num_steps=num_steps,
    )


def _losses(
    loss: Callable[..., Tensor],
    samples: Sequence[FiniteProblem],
    group_size: int,
    hyperparameters: dict[str, float],
) -> _Losses:
    """From one policy for each sample to the loss of each on its sample."""
    first = samples[0]
    laws = {
        field.name: torch.stack([getattr(sample, field.name) for sample in samples])
        for field in dataclasses.fields(FiniteProblem)
        if isinstance(getattr(first, field.name), Tensor)
    }

    def of_one(policy: Tensor, laws_of_one: dict[str, Tensor]) -> Tensor:
        sample = dataclasses.replace(first, **laws_of_one)  # type: ignore[arg-type]
        expected = population_loss(
            loss, sample, group_size=group_size, behavior=None, **hyperparameters
        )
        return expected(policy)

    of_all = torch.func.vmap(of_one)
    return lambda policies: of_all(policies, laws)


def _derivatives(losses: _Losses, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (S,), gradients (S, Y) and Hessians (S, Y, Y) over the logits."""
    point = logits.clone().requires_grad_()
    values = losses(point.log_softmax(dim=1))
    # Samples do not influence each other, so the gradient of a sum is the gradient of each.
    (gradient,) = torch.autograd.grad(values.sum(), point, create_graph=True)
    rows = [
        torch.autograd.grad(column.sum(), point, retain_graph=True)[0]
        for column in gradient.unbind(dim=1)
    ]
    return values.detach(), gradient.detach(), torch.stack(rows, dim=1)


def _newton_step(gradient: Tensor, hessian: Tensor) -> Tensor:
    """Downhill also where curvature is negative; shifts of all logits left out."""
    size = gradient.shape[1]
    centered = torch.eye(size, dtype=gradient.dtype) - 1 / size
    basis = torch.linalg.svd(centered).U[:, : size - 1]
    curvature, eigenvectors = torch.linalg.eigh(basis.T @ hessian @ basis)
    directions = basis @ eigenvectors
    force = torch.einsum("syk,sy->sk", directions, gradient)
    return -torch.einsum(
        "syk,sk->sy", directions, force / curvature.abs().clamp(min=_SMALLEST_CURVATURE)
    )


def _step_sizes(
    losses: _Losses,
    logits: Tensor,
    value: Tensor,
    step: Tensor,
    slope: Tensor,
    is_active: Tensor,
) -> Tensor:
    """For each sample the first of 1, 1/2, 1/4, … that decreases its loss enough; 0 if none."""
    # No logit moves by more than 10 at once: far out the loss is flat and Newton overshoots.
    largest = step.abs().amax(dim=1).clamp(min=1e-300)
    size = (10 / largest).clamp(max=1) * is_active
    rounding = 1e-15 * (1 + value.abs())
    is_searching = is_active.clone()
    while is_searching.any():
        change = losses((logits + size[:, None] * step).log_softmax(dim=1)) - value
        is_searching = is_searching & ~(change <= _SUFFICIENT_DECREASE * size * slope + rounding)
        size = torch.where(is_searching, size / 2, size)
        is_stuck = is_searching & (size < 1e-12)
        size = size.masked_fill(is_stuck, 0)
        is_searching = is_searching & ~is_stuck
    return size


def _first_order_gaps(losses: _Losses, policies: Tensor) -> Tensor:
    point = policies.clone().requires_grad_()
    (by_logprob,) = torch.autograd.grad(losses(point).sum(), point)
    by_probability = by_logprob / policies.exp()
    return by_logprob.sum(dim=1) - by_probability.amin(dim=1)


def _smallest_fisher_curvatures(hessian: Tensor, policies: Tensor) -> Tensor:
    root = (policies / 2).exp()
    scaled = hessian / (root[:, :, None] * root[:, None, :])
    # The shift of all logits is the direction `root` here, with eigenvalue zero; it is moved to the
    # top of the spectrum, out of the way of the smallest.
    top = scaled.abs().sum(dim=2).amax(dim=1)
    moved = scaled + top[:, None, None] * root[:, :, None] * root[:, None, :]
    curvatures: Tensor = torch.linalg.eigvalsh(moved)
    return curvatures.amin(dim=1)
